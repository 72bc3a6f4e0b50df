//! Tests of the units as they are printed.

use super::*;

#[test]
fn the_binary_is_quoted_where_it_must_be() {
    for (path, quoted) in [
        ("/usr/local/bin/allout", "/usr/local/bin/allout"),
        ("/opt/my app/allout", "\"/opt/my app/allout\""),
        ("/opt/100%/a\"b\\c$d", "\"/opt/100%%/a\\\"b\\\\c$d\""),
        ("/opt/é\n", "\"/opt/é\\x0a\""),
    ] {
        let unit = service_unit(Path::new(path), &Options::default(), false);
        assert!(unit.contains(&format!("\nExecStart={quoted}\n")), "{path}: {unit}");
        assert!(!unit.contains(BINARY), "{unit}");
    }
    assert_eq!(quote(b"/\xff"), "\"/\\xff\"");
}

#[test]
fn options_become_variables_and_what_they_need_is_allowed() {
    let binary = Path::new("/usr/bin/allout");
    let unit = service_unit(binary, &Options::default(), false);
    // For an address in the file of options no rule of the unit may keep clients out.
    assert!(unit.contains("\nIPAddressAllow=any\n") && unit.contains("\nPrivateUsers=yes\n"), "{unit}");
    assert_eq!(unit.matches("\nEnvironment=").count(), 1, "{unit}");

    let options = Options {
        unix: Vec::new(),
        changes_owner: false,
        access_log: Some("/var/log/allout/access.log".into()),
        variables: vec![("ALLOUT_LISTEN".into(), "0.0.0.0:80".into()), ("ALLOUT_GRACE".into(), "1m 30s".into())],
        addresses: vec![SocketAddr::from(([0, 0, 0, 0], 80))],
        token_file: Some("/etc/allout/token".into()),
    };
    let unit = service_unit(binary, &options, false);
    for line in [
        "Environment=ALLOUT_LISTEN=0.0.0.0:80",
        "Environment=\"ALLOUT_GRACE=1m 30s\"",
        "LoadCredential=shutdown-token:/etc/allout/token",
        "Environment=ALLOUT_SHUTDOWN_TOKEN_FILE=%d/shutdown-token",
        "AmbientCapabilities=CAP_NET_BIND_SERVICE",
        "LogsDirectory=allout",
    ] {
        assert!(unit.contains(&format!("\n{line}\n")), "{line}: {unit}");
    }
    assert!(unit.contains("\nIPAddressAllow=any\n") && !unit.contains("\nPrivateUsers"), "{unit}");
    assert!(unit.contains("\nEnvironment=ALLOUT_ENV_FILE=-/etc/default/allout\n"), "{unit}");

    let unit = service_unit(binary, &options, true);
    assert!(unit.contains("\nEnvironment=ALLOUT_LISTEN=0.0.0.0:%i\n"), "{unit}");
    assert!(unit.contains("=-/etc/default/allout,-/etc/default/allout-%i\n"), "{unit}");
    let addresses = ["127.0.0.1:1", "[::1]:2", "127.0.0.1:3"].map(|address| address.parse().unwrap()).to_vec();
    let unit = service_unit(binary, &Options { addresses, ..Options::default() }, true);
    assert!(unit.contains("\nEnvironment=ALLOUT_LISTEN=127.0.0.1:%i,[::1]:%i\n"), "{unit}");
    assert_eq!(options.elsewhere(), "# For allout.service: ALLOUT_GRACE=1m 30s\n");

    let unit = user_unit(binary, &options);
    assert!(unit.contains("ip_unprivileged_port_start"), "{unit}");
    assert!(unit.contains("\nWantedBy=default.target\n"), "{unit}");
    assert!(unit.contains("\nEnvironment=ALLOUT_SHUTDOWN_TOKEN_FILE=/etc/allout/token\n"), "{unit}");
    assert!(!unit.contains("DynamicUser") && !unit.contains("IPAddress"), "{unit}");
}

#[test]
fn a_binary_that_the_unit_hides_is_pointed_out() {
    let service_unit = |path| service_unit(path, &Options::default(), false);
    assert!(service_unit(Path::new("/home/me/allout")).contains("CAUTION"));
    assert!(service_unit(Path::new("/opt/a\"b")).contains("CAUTION"));
    assert!(!service_unit(Path::new("/usr/bin/allout")).contains("CAUTION"));
}

#[test]
fn the_socket_admits_clients_that_can_reach_its_address() {
    let socket_unit = |listen: &[SocketAddr]| socket_unit(listen, &[], Mode(0), None);
    let local = socket_unit(&[SocketAddr::from(([127, 0, 0, 1], 8088))]);
    assert!(local.contains("ListenStream=127.0.0.1:8088\n") && local.contains("\nIPAddressDeny=any\n"), "{local}");
    let all = socket_unit(&[SocketAddr::from(([0, 0, 0, 0], 80)), SocketAddr::from(([0; 8], 80))]);
    let both = "\nListenStream=0.0.0.0:80\nListenStream=[::]:80\nBindIPv6Only=ipv6-only\n";
    assert!(all.contains(both), "{all}");
    assert!(!all.contains("\nIPAddressDeny") && !all.contains("FreeBind"), "{all}");
    let one = socket_unit(&[SocketAddr::from(([192, 0, 2, 1], 80))]);
    assert!(one.contains("\nFreeBind=yes\n") && !one.contains("BindIPv6Only"), "{one}");
}

#[test]
fn packages_contain_the_units_that_are_printed() {
    let unit = service_unit(Path::new(BINARY), &Options::default(), false);
    assert_eq!(unit, SERVICE);
    let unit = socket_unit(&[SocketAddr::from(([127, 0, 0, 1], 8088))], &[], Mode(0), None);
    assert_eq!(unit, SOCKET);
}

/// Each text that is replaced in the units is in them.
#[test]
fn a_template_a_token_a_port_and_a_user_each_change_the_unit() {
    let binary = Path::new(BINARY);
    let template = service_unit(binary, &Options::default(), true);
    assert!(template.starts_with(TEMPLATE_HEAD), "{template}");
    assert!(template.contains("\nDescription=allout HTTP service on port %i: one out, all out\n"), "{template}");
    let unit = user_unit(binary, &Options::default());
    assert!(
        unit.starts_with(USER_HEAD) && unit.contains("\nEnvironment=\"ALLOUT_ENV_FILE=-%E/allout.env\"\n"),
        "{unit}"
    );
    assert!(!unit.contains("/etc/") && !unit.contains("network.target"), "{unit}");
    for privileged in PRIVILEGED {
        assert!(SERVICE.contains(privileged) && !unit.contains(privileged), "{privileged}: {unit}");
    }
    for (options, paragraph) in [
        (Options { token_file: Some("/a".into()), ..Options::default() }, "# A token"),
        (
            Options { addresses: vec![SocketAddr::from(([127, 0, 0, 1], 80))], ..Options::default() },
            "without any privilege",
        ),
    ] {
        assert!(
            SERVICE.contains(paragraph) && !service_unit(binary, &options, false).contains(paragraph),
            "{paragraph}"
        );
    }
}

#[test]
fn unix_sockets_have_a_place_and_permissions_in_the_units() {
    let unix = ["/run/allout/a.sock", "/srv/b.sock", "/srv/100%/c.sock"].map(PathBuf::from).to_vec();
    let mut options = Options { unix, ..Options::default() };
    let unit = service_unit(Path::new("/usr/local/bin/allout"), &options, false);
    for line in ["RuntimeDirectory=allout", "ReadWritePaths=/srv", "ReadWritePaths=\"/srv/100%%\""] {
        assert!(unit.lines().any(|found| found == line), "{line}: {unit}");
    }
    assert!(!unit.contains("CAUTION"), "{unit}");
    options.changes_owner = true;
    assert!(service_unit(Path::new("/usr/local/bin/allout"), &options, false).contains("CAUTION"));
    let unit = socket_unit(&[], &options.unix, Mode(0o660), Some(Owner { user: None, group: Some(33) }));
    for line in [
        "ListenStream=/run/allout/a.sock",
        "ListenStream=/srv/b.sock",
        "ListenStream=/srv/100%%/c.sock",
        "SocketMode=0660",
        "SocketGroup=33",
    ] {
        assert!(unit.lines().any(|found| found == line), "{line}: {unit}");
    }
    assert!(!unit.contains("SocketUser"), "{unit}");
}
