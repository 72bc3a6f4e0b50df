use super::*;

const HOST: (&str, &[u8]) = ("Host", b"a");

/// Validates `GET /` or `POST /` in HTTP/1.1 with a Host and these headers.
fn with(headers: &[(&str, &str)]) -> Result<RequestHead, u16> {
    in_version((1, 1), headers)
}

fn in_version(version: (u8, u8), headers: &[(&str, &str)]) -> Result<RequestHead, u16> {
    let headers = headers.iter().map(|(name, value)| (*name, value.as_bytes()));
    validate("POST", "/", version, std::iter::once(HOST).chain(headers)).map_err(|rejection| rejection.status)
}

#[test]
fn hosts_are_names_or_addresses_with_a_port_perhaps() {
    for good in [
        "a",
        "example.org",
        "example.org:80",
        "127.0.0.1:8088",
        "[::1]",
        "[::1]:8088",
        "a:",
        "a_b.c",
        "a%C3%BC",
        "[1::2:3.4.5.6]",
        "[v1.a:b]",
    ] {
        assert_eq!(check_host(good.as_bytes()), Ok(()), "{good}");
    }
    let bad = [
        "",
        ":80",
        "a,b",
        "a, b",
        "user@a",
        "a/b",
        "a:b",
        "[::1",
        "[]",
        "[x]",
        "a b",
        "a:1:2",
        "a:123456",
        "[::1]80",
        "ü",
        "a%",
        "a%4",
        "a%zz",
        "[::::1]",
        "[1:2]",
        "[fe80::1%25eth0]",
        "[v.a]",
        "[vx.a]",
        "[v1.]",
        "[::1",
        "a]",
    ];
    for bad in bad {
        assert!(check_host(bad.as_bytes()).is_err(), "{bad}");
    }
}

#[test]
fn http_1_1_needs_a_host_and_http_1_0_does_not() {
    let without = |version| validate("GET", "/", version, std::iter::empty()).map_err(|rejection| rejection.status);
    assert_eq!(without((1, 1)), Err(400));
    assert!(without((1, 0)).is_ok());
    assert_eq!(with(&[("host", "a")]), Err(400), "two");
}

#[test]
fn targets_are_paths_or_absolute() {
    for good in ["/", "//", "/../", "/%00", "/?a=b", "/?a[]=1", "http://host/path", "HTTP://host", "http://h:1?q"] {
        assert_eq!(check_target("GET", good), Ok(()), "{good}");
    }
    for bad in ["*", "host", "", "http://", "ftp://host/", "/a\u{1}", "http://u@h/", "https://u@h/", "/ü", "/a b"] {
        assert_eq!(check_target("GET", bad).unwrap_err().status, 400, "{bad:?}");
    }
    for secured in ["https://host/", "HTTPS://host"] {
        assert_eq!(check_target("GET", secured).unwrap_err().status, 421, "{secured:?}");
    }
    assert_eq!(check_target("OPTIONS", "*"), Ok(()));
    assert_eq!(check_target("GET", &"/".repeat(MAX_TARGET)), Ok(()));
    assert_eq!(check_target("GET", &"/".repeat(MAX_TARGET + 1)).unwrap_err().status, 414);
    assert_eq!(absolute_path("http://host/a?b"), Some("/a?b"));
    assert_eq!(absolute_path("http://host"), Some("/"));
    assert_eq!(authority("http://host:1/a"), Some("host:1"));
}

#[test]
fn targets_are_visible_ascii_without_fragments_and_backslashes_in_paths() {
    for byte in 0..=u8::MAX {
        let in_query = byte.is_ascii_graphic() && byte != b'#';
        let in_path = in_query && byte != b'\\';
        let rows = [("/a", in_path), ("/?a=", in_query), ("http://h/", in_path), ("http://h?", in_query)];
        for (prefix, is_allowed) in rows {
            let target = [prefix.as_bytes(), &[byte], b"z"].concat();
            let found = std::str::from_utf8(&target).map(|target| check_target("GET", target).is_ok());
            assert_eq!(found, if byte.is_ascii() { Ok(is_allowed) } else { found }, "{prefix:?}, {byte:#x}");
        }
    }
}

#[test]
fn methods_are_tokens_and_make_no_tunnel() {
    assert_eq!(check_method("GET"), Ok(()));
    assert_eq!(check_method("get-2"), Ok(()));
    assert_eq!(check_method(&"A".repeat(MAX_METHOD)), Ok(()));
    let long = "A".repeat(MAX_METHOD + 1);
    for (method, status) in [("", 400), ("G T", 400), ("G\0T", 400), ("GËT", 400), ("CONNECT", 501), (&long, 501)] {
        assert_eq!(check_method(method).unwrap_err().status, status, "{method}");
    }
}

#[test]
fn versions_are_1_0_or_later_ones_of_major_1() {
    assert_eq!(in_version((1, 0), &[]).unwrap().version, Version::Http10);
    assert_eq!(in_version((1, 1), &[]).unwrap().version, Version::Http11);
    assert_eq!(in_version((1, 2), &[]).unwrap().version, Version::Http11);
    for version in [(0, 9), (2, 0), (3, 0)] {
        assert_eq!(in_version(version, &[]), Err(505), "{version:?}");
    }
}

#[test]
fn lengths_are_digits_and_nothing_else() {
    let framing = |length| with(&[("Content-Length", length)]).map(|head| head.framing);
    assert_eq!(framing("0"), Ok(Framing::None));
    assert_eq!(framing("5"), Ok(Framing::Length(5)));
    assert_eq!(framing(" 5\t"), Ok(Framing::Length(5)));
    assert_eq!(framing("0005"), Ok(Framing::Length(5)));
    assert_eq!(framing("18446744073709551615"), Ok(Framing::Length(u64::MAX)));
    assert_eq!(in_version((1, 0), &[("content-length", "5")]).unwrap().framing, Framing::Length(5));
    for bad in
        ["18446744073709551616", "99999999999999999999999", "+5", "5,6", "5, 5", "-1", "", "0x5", "5 5", "\x0b5", "٣"]
    {
        assert_eq!(framing(bad), Err(400), "{bad:?}");
    }
    assert_eq!(with(&[("Content-Length", "5"), ("Content-Length", "5")]), Err(400));
}

#[test]
fn the_only_coding_is_chunked_and_it_is_the_last() {
    let framing = |coding| with(&[("Transfer-Encoding", coding)]).map(|head| head.framing);
    assert_eq!(framing("chunked"), Ok(Framing::Chunked));
    assert_eq!(framing(" Chunked "), Ok(Framing::Chunked));
    assert_eq!(framing("gzip, chunked"), Err(501));
    let unknown_length =
        ["identity", "gzip", "chunked, gzip", "chunked, identity", "\"chunked\"", "chunked;q=1", "xchunked"];
    let malformed =
        ["", ",", "chunked,", ",chunked", "chunked, chunked", "gzip,,chunked", "\x0bchunked", "chunked\x0c"];
    for coding in unknown_length.into_iter().chain(malformed) {
        assert_eq!(framing(coding), Err(400), "{coding:?}");
    }
    assert_eq!(with(&[("Content-Length", "5"), ("Transfer-Encoding", "chunked")]), Err(400));
    assert_eq!(with(&[("Transfer-Encoding", "chunked"), ("Transfer-Encoding", "chunked")]), Err(400));
    assert_eq!(in_version((1, 0), &[("Transfer-Encoding", "chunked")]), Err(400));
}

#[test]
fn values_may_hold_bytes_above_ascii_and_no_control_character() {
    for good in ["Zoë", "a\tb", "", "\u{80}", "a b"] {
        assert!(with(&[("X", good)]).is_ok(), "{good:?}");
    }
    assert!(validate("GET", "/", (1, 1), [HOST, ("X", &[0x80, 0xff][..])].into_iter()).is_ok());
    for bad in ["\0", "a\rb", "a\nb", "\x0b", "\x0c", "\x7f", "\x1b[31m"] {
        assert_eq!(with(&[("X", bad)]), Err(400), "{bad:?}");
    }
}

#[test]
fn names_are_tokens() {
    for bad in ["", "a b", "a(b", " a", "a:", "ä", "a\0"] {
        assert_eq!(with(&[(bad, "x")]), Err(400), "{bad:?}");
    }
    assert!(with(&[("x!#$%&'*+-.^_`|~9Z", "x")]).is_ok());
}

#[test]
fn headers_have_a_limit_in_number_and_size() {
    let many = vec![("X", "a"); MAX_HEADER_COUNT - 1];
    assert!(with(&many).is_ok());
    assert_eq!(with(&[&many[..], &[("X", "a")]].concat()), Err(431));
    let longest = "a".repeat(MAX_HEADER_LINE - "X: \r\n".len());
    assert!(with(&[("X", &longest)]).is_ok());
    assert_eq!(with(&[("XX", &longest)]), Err(431));
    assert_eq!(with(&[("X", longest.as_str()); 4]), Err(431), "together with the Host more than the total");
}

#[test]
fn connection_options_say_whether_it_closes() {
    let options =
        |version, value: &[(&str, &str)]| in_version(version, value).map(|head| (head.close, head.keep_alive));
    assert_eq!(options((1, 1), &[]), Ok((false, false)));
    assert_eq!(options((1, 1), &[("Connection", "keep-alive")]), Ok((false, false)));
    assert_eq!(options((1, 1), &[("Connection", "upgrade, Close")]), Ok((true, false)));
    assert_eq!(options((1, 1), &[("Connection", "x"), ("connection", "close")]), Ok((true, false)));
    assert_eq!(options((1, 1), &[("Connection", "x-close")]), Ok((false, false)));
    assert_eq!(options((1, 0), &[]), Ok((true, false)));
    assert_eq!(options((1, 0), &[("Connection", "Keep-Alive")]), Ok((false, true)));
    assert_eq!(options((1, 0), &[("Connection", "x-keep-alive")]), Ok((true, false)));
    assert_eq!(options((1, 0), &[("Connection", "keep-alive, close")]), Ok((true, false)));
}

#[test]
fn a_continue_is_expected_by_http_1_1_with_a_body() {
    let expects = |version, headers: &[_]| in_version(version, headers).map(|head| head.expect_continue);
    let (continues, length) = (("Expect", "100-Continue"), ("Content-Length", "5"));
    assert_eq!(expects((1, 1), &[continues, length]), Ok(true));
    assert_eq!(expects((1, 1), &[continues, ("Transfer-Encoding", "chunked")]), Ok(true));
    assert_eq!(expects((1, 1), &[continues]), Ok(false));
    assert_eq!(expects((1, 1), &[continues, ("Content-Length", "0")]), Ok(false));
    assert_eq!(expects((1, 0), &[continues, length]), Ok(false));
    assert_eq!(expects((1, 0), &[("Expect", "much"), length]), Ok(false));
    assert_eq!(expects((1, 1), &[("Expect", "much"), length]), Err(417));
    assert_eq!(expects((1, 1), &[continues, continues, length]), Err(400));
}
