//! `--gdb`: debuggers that send packets of their own, and break the rules. They need no gdb.
#![allow(clippy::unwrap_used)]

#[path = "support/gdb.rs"]
mod debugger;
mod support;

use debugger::{Debugged, counter};
use libtest_mimic::Trial;
use std::io::{Read, Write};
use std::process::{Command, ExitCode};
use std::thread;
use std::time::Duration;
use support::{Files, assert_error, on_both, plain_test, ran};

fn main() -> ExitCode {
    support::watchdog();
    let mut tests: Vec<Trial> = vec![plain_test("a_wrong_place_is_refused", wrong_place)];
    tests.extend(on_both("a_client_that_breaks_the_rules_ends_only_its_session", broken_clients));
    tests.extend(on_both("a_damaged_packet_is_asked_for_again", damaged_packets));
    tests.extend(on_both("a_debugger_that_goes_while_the_guest_runs_can_come_back", gone_while_it_runs));
    tests.extend(on_both("threads_that_do_not_exist_get_an_answer", unknown_threads));
    tests.extend(on_both("breakpoints_have_a_limit", many_breakpoints));
    tests.extend(on_both("a_second_debugger_is_refused", second_debugger));
    tests.extend(on_both("limits_hold_while_the_guest_waits", limits));
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

fn wrong_place() {
    for wrong in ["guest.bin", "99999", "on-deathly", "host:1"] {
        let refused = ran(&["real16-hello", &format!("--gdb={wrong}")]);
        assert_eq!(refused.status, 110);
        assert!(
            refused.stderr.contains("give PORT, ADDRESS:PORT, or the path of a socket"),
            "{}",
            refused.stderr
        );
    }
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = taken.local_addr().unwrap().port().to_string();
    let refused = ran(&["real16-hello", &format!("--gdb={port}")]);
    assert_error(&refused, 110, &format!("cannot wait for gdb at 127.0.0.1:{port}: Address"));
}

fn broken_clients() {
    // The guest goes on after each of them, and ends.
    let garbage: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\n\r\n",
        &[0xff; 5000],
        b"$#00",
        b"$qSupported:multiprocess+#00",
        b"$vCont;#00$vCont;s:zz#ff$m,,#00$Z9,1,1#00",
        b"$g#67",
    ];
    for bytes in garbage {
        let guest = Debugged::start(&["long64-hello"]);
        let mut client = guest.raw();
        client.0.write_all(bytes).unwrap();
        drop(client);
        let ended = guest.end();
        assert_eq!(
            (ended.status, ended.text()),
            (0, "Hello, world!\n".into()),
            "{bytes:?}: {}",
            ended.stderr
        );
    }
    let guest = Debugged::start(&["long64-hello"]);
    let mut client = guest.raw();
    // The other side may close before it has read all.
    let _ = client.0.write_all(&[b"$", &[b'a'; 1 << 20][..]].concat());
    assert!(client.is_closed());
    assert_eq!(guest.end().status, 0);
}

fn damaged_packets() {
    let guest = Debugged::start(&["long64-hello"]);
    let mut client = guest.raw();
    let long = [b"$m", &[b'0'; 20_000][..], b"#00"].concat();
    for damaged in [&b"$m1000,4#00"[..], &long] {
        client.0.write_all(damaged).unwrap();
        let mut answer = [0];
        client.0.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"-");
        assert_eq!(client.ask("m1000,4").len(), 8, "the session goes on");
    }
    drop(client);
    assert_eq!(guest.end().status, 0);
}

fn gone_while_it_runs() {
    let files = Files::new();
    let guest = Debugged::start(&[&counter(&files), "--timeout", "5"]);
    for _ in 0..2 {
        // The program notices soon that the debugger before has gone.
        let mut client = loop {
            let mut client = guest.raw();
            match client.ask("Z0,1003,1").as_str() {
                "OK" => break client,
                refused => assert!(refused.starts_with("E.another"), "{refused}"),
            }
            thread::sleep(Duration::from_millis(20));
        };
        assert!(client.ask("vCont;c").starts_with("T05"));
        assert_eq!(client.ask("z0,1003,1"), "OK");
        client.send("vCont;c");
        thread::sleep(Duration::from_millis(200));
    }
    let ended = guest.end();
    assert_eq!(ended.status, 114, "{}", ended.stderr);
    assert_eq!(ended.stderr.matches("the guest goes on without it").count(), 2, "{}", ended.stderr);
}

fn unknown_threads() {
    let guest = Debugged::start(&["long64-hello"]);
    let mut client = guest.raw();
    assert!(client.ask("qSupported:multiprocess+").contains("PacketSize="));
    assert_eq!(client.ask("Hgp1.63"), "OK");
    assert!(client.ask("g").starts_with('E'));
    assert!(client.ask("m1000,4").starts_with('E'));
    assert!(client.ask("vCont;s:p1.63").starts_with('T'));
    assert!(client.ask("vCont;c:p1.63").starts_with('T'));
    assert_eq!(client.ask("vCont;c"), "W00");
    assert_eq!(guest.end().status, 0);
}

fn many_breakpoints() {
    let guest = Debugged::start(&["long64-hello"]);
    let mut client = guest.raw();
    client.send("QStartNoAckMode");
    client.receive();
    for place in 0..10_000 {
        assert_eq!(client.ask(&format!("Z0,{:x},1", 0x10_0000 + place)), "OK");
    }
    assert_eq!(client.ask("Z0,100b,1"), "OK");
    assert!(client.ask("vCont;c").starts_with("T05"));
    for place in 10_000..16_383 {
        client.send(&format!("Z0,{:x},1", 0x10_0000 + place));
        client.receive();
    }
    assert!(client.ask("Z0,90000000,1").starts_with('E'), "there is no limit");
    assert!(client.ask("vCont;c").starts_with("T05"));
    drop(client);
    assert_eq!(guest.end().status, 0);
}

fn second_debugger() {
    let guest = Debugged::start(&["long64-hello"]);
    let mut first = guest.raw();
    assert!(first.ask("?").starts_with("T05"));
    let mut second = guest.raw();
    assert_eq!(second.receive().unwrap(), "E.another debugger is connected to this guest");
    assert!(second.is_closed());
    assert!(first.ask("vCont;s:1;c").starts_with('T'));
    assert_eq!(first.ask("vCont;c"), "W00");
    let ended = guest.end();
    assert!(ended.stderr.contains("a second debugger was refused"), "{}", ended.stderr);
}

fn limits() {
    let files = Files::new();
    let path = counter(&files);
    let start = |options: &[&str]| {
        let path = path.clone();
        Debugged::start(&[&[path.as_str()], options].concat())
    };
    // Time in which the guest stands does not count; without a debugger it goes on, and the limit holds.
    let guest = start(&["--timeout", "0.5"]);
    let mut client = guest.raw();
    thread::sleep(Duration::from_millis(700));
    assert!(client.ask("vCont;s:1").starts_with('T'));
    thread::sleep(Duration::from_millis(700));
    assert!(client.ask("vCont;s:1").starts_with('T'));
    drop(client);
    assert_eq!(guest.end().status, 114);
    // The limit in real time holds without any debugger.
    let ended = start(&["--wall-timeout", "0.5"]).end();
    assert_eq!(ended.status, 114, "{}", ended.stderr);
    // A signal ends a guest that waits, and one whose debugger does nothing.
    for connects in [false, true] {
        let guest = start(&[]);
        let client = connects.then(|| guest.raw());
        thread::sleep(Duration::from_millis(100));
        assert!(Command::new("kill").arg(guest.process().to_string()).status().unwrap().success());
        assert_eq!(guest.end().status, 117);
        drop(client);
    }
    drop(files);
}
