use std::ffi::OsString;
use std::time::Duration;

use super::hints::distance;
use super::values::{Mode, Owner};
use super::*;

fn read(line: &[&str]) -> Result<Args, clap::Error> {
    let line: Vec<_> = std::iter::once("allout").chain(line.iter().copied()).map(OsString::from).collect();
    Args::read(&line, &Variables::default())
}

fn rejection(line: &[&str]) -> String {
    let error = read(line).err().unwrap_or_else(|| panic!("{line:?} was accepted"));
    assert_eq!(error.exit_code(), 2, "{line:?}");
    error.to_string()
}

#[test]
fn the_definition_is_sound() {
    command().debug_assert();
}

#[test]
fn defaults_are_those_of_the_manual() {
    let args = read(&[]).unwrap();
    let config = allout::Config::default();
    assert_eq!((args.addresses(), args.admin_listen), (config.listen, config.admin_listen));
    assert_eq!(args.addresses(), ["127.0.0.1:8088".parse().unwrap()]);
    assert_eq!(
        (args.workers, args.queue, args.max_connections),
        (config.workers, config.queue, config.max_connections)
    );
    assert_eq!(args.grace, Duration::from_secs(30));
    assert_eq!(args.drain_delay, Duration::ZERO);
    assert_eq!(args.keepalive_min, Duration::from_millis(50));
    assert_eq!(args.idle_timeout, Duration::from_secs(30));
    assert_eq!(args.request_timeout, Duration::from_secs(60));
    assert_eq!(args.timeout_delay, Duration::from_secs(20));
    assert_eq!(args.log_format, LogFormat::Text);
    assert_eq!(args.access_log, AccessLog::Off);
    assert_eq!(args.systemd_unit, None);
    assert!(args.shutdown_token.is_none() && args.shutdown_token_file.is_none() && !args.no_shutdown);
}

#[test]
fn every_option_reads_the_variable_of_its_name() {
    for arg in command().get_arguments() {
        let Some(long) = arg.get_long().filter(|long| !["help", "version", "generate", "check"].contains(long)) else {
            continue;
        };
        let name = format!("ALLOUT_{}", long.to_uppercase().replace('-', "_"));
        assert_eq!(arg.get_env(), Some(name.as_ref()));
        let help = arg.get_help().map(ToString::to_string).unwrap_or_default();
        assert!(help.contains(&name), "{help}");
    }
}

#[test]
#[cfg(feature = "tiny-http")] // the default engine of what is packaged
fn the_file_of_options_in_packages_has_every_option_with_its_default() {
    let file = include_str!("../../../packaging/allout.default");
    for arg in command().get_arguments() {
        let Some(name) = arg.get_env().and_then(|name| name.to_str()) else { continue };
        // Every user can read the file, so that it must not hold the token; the second prints a unit, and the third
        // names this file.
        let is_left_out = ["ALLOUT_SHUTDOWN_TOKEN", "ALLOUT_SYSTEMD_UNIT", "ALLOUT_ENV_FILE"].contains(&name);
        let default = arg.get_default_values().first().map(|value| value.to_string_lossy().into_owned());
        let line = format!("\n#{name}={}", default.unwrap_or_default());
        assert_eq!(file.contains(&line), !is_left_out, "{line}");
    }
}

#[test]
fn every_option_is_in_the_readme() {
    let readme = include_str!("../../../../README.md");
    for long in command().get_arguments().filter_map(clap::Arg::get_long) {
        let hidden = ["help", "version", "generate"].contains(&long);
        assert!(hidden || readme.contains(&format!("| `--{long}")), "--{long}");
    }
}

#[test]
fn addresses_parse_or_say_what_would() {
    let listen =
        |line: &[&str]| read(line).unwrap().addresses().iter().map(ToString::to_string).collect::<Vec<_>>().join(" ");
    assert_eq!(listen(&["--listen", "localhost:0"]), "127.0.0.1:0");
    assert_eq!(listen(&["--listen", "[::1]:80", "--listen=127.0.0.1:80"]), "[::1]:80 127.0.0.1:80");
    assert_eq!(listen(&["--listen", "[::1]:80,127.0.0.1:80"]), "[::1]:80 127.0.0.1:80");
    let args = read(&["--listen", "unix:/run/a.sock,127.0.0.1:80", "--unix-mode", "660", "--unix-owner", "1:2"]);
    let args = args.unwrap();
    assert_eq!((args.unix_paths(), args.addresses().len()), (vec!["/run/a.sock".into()], 1));
    assert_eq!((args.unix_mode, args.unix_owner), (Mode(0o660), Some(Owner { user: Some(1), group: Some(2) })));
    let admin = read(&["--admin-listen", "localhost:9000"]).unwrap().admin_listen;
    assert_eq!(admin, Some("127.0.0.1:9000".parse().unwrap()));
    for (bad, hint) in [
        (":8088", "0.0.0.0"),
        ("8088", "127.0.0.1:8088"),
        ("::1:8088", "brackets"),
        ("example.org:80", "not looked up"),
        ("localhost:99999", "127.0.0.1:8088"),
        ("unix:a.sock", "unix:/"),
        ("/run/a.sock", "unix:/run/a.sock"),
        ("", "127.0.0.1:8088"),
    ] {
        let said = rejection(&["--listen", bad]);
        assert!(said.contains(hint), "{bad}: {said}");
    }
}

#[test]
fn durations_parse_or_say_what_would() {
    assert_eq!(read(&["--grace", "1m 30s"]).unwrap().grace, Duration::from_secs(90));
    assert_eq!(read(&["--keepalive-min=500ms"]).unwrap().keepalive_min, Duration::from_millis(500));
    for bad in ["30", "0", "-1s", "30 parsecs", "s", "1e3s", "999999999999999999999s"] {
        let said = rejection(&[&format!("--grace={bad}")]);
        assert!(said.contains("as in 30s"), "{bad}: {said}");
    }
    assert!(rejection(&["--grace", "400d"]).contains("a year at most"));
    assert!(rejection(&["--idle-timeout", "0s"]).contains("more than nothing"));
    assert!(read(&["--grace", "0s"]).is_ok());
}

#[test]
fn zero_is_refused_where_nothing_would_work() {
    assert!(rejection(&["--workers", "0"]).contains("1 or more"));
    assert!(rejection(&["--max-connections", "0"]).contains("1 or more"));
    assert!(rejection(&["--queue=-1"]).contains("whole number"));
    assert_eq!(read(&["--queue", "0"]).unwrap().queue, 0);
    rejection(&["--shutdown-token", ""]);
}

#[test]
fn access_logs_and_proxies_are_files_and_networks_or_say_what_would_be() {
    assert_eq!(read(&["--access-log", "/x/log"]).unwrap().access_log, AccessLog::File("/x/log".into()));
    assert!(rejection(&["--access-log", "combined"]).contains("/var/log/allout/access.log"));
    assert_eq!(read(&["--trust-proxy", "10.0.0.0/8,::1"]).unwrap().trust_proxy, ["10.0.0.0/8", "::1"]);
    for bad in ["proxy", "10.0.0.0/33", "::1/129", "10.0.0.0/"] {
        assert!(rejection(&["--trust-proxy", bad]).contains("a network"), "{bad}");
    }
}

#[test]
fn the_unit_option_needs_no_value_and_takes_no_other_argument() {
    assert_eq!(read(&["--systemd-unit"]).unwrap().systemd_unit, Some(Unit::Service));
    assert_eq!(read(&["--systemd-unit=socket"]).unwrap().systemd_unit, Some(Unit::Socket));
    rejection(&["--systemd-unit", "socket"]);
}

#[test]
fn a_slip_gets_a_suggestion() {
    assert!(rejection(&["--grase", "3s"]).contains("'--grace'"));
    for (line, hint) in [
        (&["--port", "80"][..], "--listen"),
        (&["-p", "80"], "--listen"),
        (&["8080"], "--listen"),
        (&["0.0.0.0:80"], "--listen"),
        (&["--log-level=debug"], "RUST_LOG"),
        (&["-v"], "RUST_LOG"),
        (&["--config", "/etc/allout"], "ALLOUT_LISTEN"),
        (&["help"], "--help"),
    ] {
        let said = rejection(line);
        assert!(said.contains(hint), "{line:?}: {said}");
    }
    assert_eq!(distance("ALLOUT_GRASE", "ALLOUT_GRACE"), 1);
    assert_eq!((distance("", "abc"), distance("abc", ""), distance("kitten", "sitting")), (3, 3, 3));
}

#[test]
fn options_without_effect_are_warned_about() {
    let unused = |line: &[&str]| read(line).unwrap().unused().join(" ");
    assert!(unused(&["--unix-mode", "660"]).contains("--unix-mode"));
    assert!(unused(&["--unix-owner", ":0"]).contains("--unix-owner"));
    assert_eq!(unused(&["--unix-mode", "660", "--listen", "unix:/run/a.sock", "--engine", "native"]), "");
    assert_eq!(unused(&["--receivers", "2", "--engine", "native"]), "");
    assert!(unused(&["--request-timeout", "20s"]).contains("--timeout-delay"));
    assert_eq!(unused(&["--request-timeout", "20s", "--timeout-delay", "19s"]), "");
    if cfg!(feature = "tiny-http") {
        assert!(unused(&["--receivers", "2", "--engine", "tiny-http"]).contains("--receivers"));
    }
}

#[test]
fn contradictions_are_refused() {
    assert!(rejection(&["--no-shutdown", "--shutdown-token", "x"]).contains("--no-shutdown leaves out"));
    assert!(rejection(&["--no-shutdown", "--shutdown-token-file", "x"]).contains("--no-shutdown leaves out"));
    let said = rejection(&["--drain-delay", "31s"]);
    assert!(said.contains("--drain-delay 31s is a part of --grace 30s"), "{said}");
    assert!(read(&["--drain-delay", "30s"]).is_ok());
}

/// Variables belong to the whole process and tests share it: each of these runs this test program again.
#[test]
fn a_flag_beats_the_variable_and_the_variable_is_named_when_it_is_wrong() {
    if std::env::var_os("ALLOUT_TEST_CHILD").is_some() {
        let line: Vec<_> = std::env::var("ALLOUT_TEST_LINE").unwrap().split_whitespace().map(str::to_owned).collect();
        match read(&line.iter().map(String::as_str).collect::<Vec<_>>()) {
            Ok(args) => {
                println!("<{:?} {} {}>", args.grace, args.no_shutdown, args.access_log == AccessLog::On);
            }
            Err(error) => println!("<{} {error}>", error.exit_code()),
        }
        return;
    }
    let child = |line: &str, variables: &[(&str, &str)]| {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--nocapture", "--test-threads=1", "a_flag_beats_the_variable"])
            .envs(variables.iter().copied())
            .env("ALLOUT_TEST_CHILD", "1")
            .env("ALLOUT_TEST_LINE", line)
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    let expect = |line: &str, variables: &[(&str, &str)], what: &str| {
        let said = child(line, variables);
        assert!(said.contains(what), "{line:?} with {variables:?}: {said}");
    };
    expect("", &[("ALLOUT_GRACE", "3s")], "<3s false false>");
    expect("--grace 4s", &[("ALLOUT_GRACE", "3s")], "<4s false false>");
    expect("--grace 4s", &[("ALLOUT_GRACE", "rubbish")], "<4s false false>");
    for yes in ["1", "true", "yes", "on"] {
        expect("", &[("ALLOUT_NO_SHUTDOWN", yes), ("ALLOUT_ACCESS_LOG", yes)], "<30s true true>");
    }
    for no in ["0", "false", "no", "off"] {
        expect("", &[("ALLOUT_NO_SHUTDOWN", no), ("ALLOUT_ACCESS_LOG", no)], "<30s false false>");
    }
    for (name, value) in [("ALLOUT_GRACE", "30"), ("ALLOUT_NO_SHUTDOWN", "maybe"), ("ALLOUT_LISTEN", ":1")] {
        expect("", &[(name, value)], "<2 error");
        expect("", &[(name, value)], &format!("environment variable {name}"));
    }
    assert!(!child("--grace 3", &[("ALLOUT_GRACE", "3")]).contains("environment variable"));
}
