//! `vmm report`: its text, JSON, CSV and HTML, also of hostile files.
#![allow(clippy::unwrap_used)]

#[path = "support/reports.rs"]
mod reports;
#[path = "support/saved.rs"]
mod saved;
mod support;

use report::Saved;
use reports::{profile_in, report, table, trace_in};
use serde_json::Value;
use std::process::{Command, ExitCode, Stdio};
use support::{Files, assert_error, machine_test, plain_test, ran, run};

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![
        plain_test("the_report_of_a_profile_names_the_costliest_device", profile_text),
        plain_test("kvm_counters_stand_next_to_ours_with_the_reason_for_a_difference", counters),
        plain_test("a_trace_has_a_row_for_each_record_in_every_format", trace_lines),
        plain_test("two_files_give_a_difference_in_every_format", differences),
        plain_test("a_comparison_with_a_trace_covers_its_records_and_says_so", mixed),
        plain_test("hostile_names_are_escaped_for_a_terminal", hostile_text),
        plain_test("hostile_names_are_not_formulas_in_csv", hostile_csv),
        plain_test("hostile_names_are_unchanged_in_json", hostile_json),
        plain_test("hostile_names_are_not_tags_in_html", hostile_html),
        plain_test("the_examples_in_the_format_documentation_work", documented),
        machine_test("a_report_reads_the_files_of_a_run", run_and_report),
    ];
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

fn profile_text() {
    let files = Files::new();
    let text = report(&[&profile_in(&files, "p", &saved::simvirtio(1.0))]);
    assert!(text.starts_with("simvirtio: halted; verified: RAX = 42, [0x400] = 42\n"), "{text}");
    let most = "\n15 of 40 exits read TX tail: read it once for each batch of bytes, or poll (--transport polling); most time: simvirtio, 95.3 % of 352 us in 39 exits; its costliest site: MMIO write 0x100010 (simvirtio TX head), 58.6 %\n";
    assert!(text.contains(most), "{text}");
    let sites = table(&text, "Where the exits come from:");
    assert!(sites[0].contains(" in KVM ") && sites[0].contains(" in the VMM "), "{text}");
    assert!(sites[1].trim_start().starts_with("exits  share "), "{text}");
    assert!(
        sites[2].trim_start().starts_with("14  35.0%") && sites[2].ends_with("simvirtio TX head"),
        "most time first: {text}"
    );
    assert_eq!(sites.len(), 2 + 9);
    assert_eq!(table(&text, "By device:").len(), 1 + 2);
    let boot = report(&[&profile_in(&files, "boot", &saved::boot())]);
    assert!(table(&boot, "Boot marks").iter().any(|line| line.ends_with("userland")), "{boot}");
    assert_eq!(table(&boot, "vCPUs:").len(), 2 + 2);
    // Only a profile with boot marks has a timeline.
    for (profile, title) in [(saved::simvirtio(1.0), "Time of each vCPU"), (saved::boot(), "Timeline")] {
        let page = report(&[&profile_in(&files, "page", &profile), "--format", "html"]);
        assert!(page.contains(&format!("<h2>{title}</h2>")), "{title}");
        assert_eq!(page.contains(">Timeline<"), title == "Timeline");
    }
}

fn counters() {
    let files = Files::new();
    let text = report(&[&profile_in(&files, "p", &saved::simvirtio(1.0))]);
    let kernel = table(&text, "KVM's own counters:");
    let words: Vec<_> = kernel[1].split_whitespace().take(3).collect();
    assert_eq!(words, ["exits", "41", "40"]);
    assert!(kernel[1].contains("KVM also counts the exits that the kernel handled itself"), "{text}");
    assert!(kernel[2].ends_with("they agree"), "{text}");
    let mut none = saved::simvirtio(1.0);
    none.machine.kernel = None;
    assert!(!report(&[&profile_in(&files, "n", &none)]).contains("KVM's own counters"));
}

fn trace_lines() {
    let files = Files::new();
    let trace = trace_in(&files, "t", &saved::boot_trace(2000));
    let text = report(&[&trace]);
    assert_eq!(table(&text, "The last exits:").len(), 1 + 2001);
    assert!(text.contains("\nnote: 1234 elements before the first record are not in the trace.\n"));
    let csv = records(&report(&[&trace, "--format", "csv"]));
    assert_eq!(csv.len(), 1 + 2001);
    assert_eq!(csv[0][..6], ["when_ns", "delta_ns", "vcpu", "reason", "place", "width"]);
    let json: Value = serde_json::from_str(&report(&[&trace, "--format", "json"])).unwrap();
    let rows = json["records"].as_array().unwrap();
    assert_eq!((rows.len(), json["kind"].as_str(), json["seen"].as_u64()), (2001, Some("trace"), Some(3235)));
    // The three formats agree on the same record.
    for row in [0, 1000, 2000] {
        let (json, csv) = (&rows[row], &csv[row + 1]);
        assert_eq!(json["when_ns"].to_string(), csv[0]);
        assert_eq!(json["in_kvm_ns"].to_string(), csv[8]);
        let line = table(&text, "The last exits:")[row + 1];
        let when = json["when_ns"].as_u64().unwrap();
        assert!(
            line.trim_start().starts_with(&format!("{}.{:06}", when / 1_000_000, when % 1_000_000)),
            "{line}"
        );
        assert!(line.contains(&csv[7]), "the RIP {}: {line}", csv[7]);
    }
    let deltas: u64 = rows.iter().map(|row| row["delta_ns"].as_u64().unwrap()).sum();
    let when = |row: &Value| row["when_ns"].as_u64().unwrap();
    assert_eq!(deltas, when(&rows[2000]) - when(&rows[0]));
}

fn differences() {
    let files = Files::new();
    let mut slower = saved::simvirtio(2.0);
    let gone = slower.machine.sites.iter().position(|site| site.place == Some(0x10_0005)).unwrap();
    slower.machine.sites[gone].place = Some(0x10_0009);
    let (a, b) = (profile_in(&files, "a", &saved::simvirtio(1.0)), profile_in(&files, "b", &slower));
    let text = report(&[&a, &b]);
    let rows = table(&text, "Site by site:");
    assert_eq!(rows.len(), 2 + 10);
    assert!(rows[2].contains(" x2.00 ") && rows[2].contains("simvirtio TX head"), "{text}");
    let only = |side: &str, place: &str| {
        rows.iter().any(|row| row.contains(place) && row.split_whitespace().any(|word| word == side))
    };
    assert!(only("A", "0x100005") && only("B", "0x100009"), "{text}");
    let csv = records(&report(&[&a, &b, "--format", "csv"]));
    let column = |name: &str| csv[0].iter().position(|head| head == name).unwrap();
    let site = csv.iter().find(|row| row[column("place")] == "0x100009").unwrap();
    assert_eq!((site[column("exits_a")].as_str(), site[column("exits_delta")].as_str()), ("0", "1"));
    let json: Value = serde_json::from_str(&report(&[&a, &b, "--format", "json"])).unwrap();
    let site = &json["sites"][0];
    assert_eq!(
        (&json["kind"], &site["exits_a"], &site["place"]),
        (&"difference".into(), &14.into(), &0x10_0010.into())
    );
    assert!((site["in_kvm_mean_ratio"].as_f64().unwrap() - 2.0).abs() < 0.01, "{site}");
    // Both sides have their origins.
    for (key, side) in
        [("a_kernel", "a"), ("b_kernel", "b"), ("a_date", "a"), ("b_cpu", "b"), ("b_program", "b")]
    {
        assert!(json[key].as_str().is_some_and(|text| !text.is_empty()), "{key} of {side}: {json}");
    }
    let html = report(&[&a, &b, "--format", "html"]);
    assert_eq!(html.matches("<dt>kernel</dt>").count(), 2);
    assert!(html.contains("Above the line: A, ") && html.contains("<td>B</td>"));
    // A file does not differ from itself.
    let same: Value = serde_json::from_str(&report(&[&a, &a, "--format", "json"])).unwrap();
    let sites = same["sites"].as_array().unwrap();
    assert!(
        sites.iter().all(|site| site["exits_delta"] == 0
            && site["in_vmm_mean_ratio"] == 1.0
            && site["only"].is_null())
    );
}

fn mixed() {
    let files = Files::new();
    let trace = saved::boot_trace(500);
    let (a, b) = (trace_in(&files, "a", &trace), profile_in(&files, "b", &trace.profile()));
    let text = report(&[&a, &b]);
    assert!(
        text.contains("\nnote: A is a trace: its counts cover 501 of the 1735 elements of the run.\n"),
        "{text}"
    );
    let rows = table(&text, "Site by site:");
    // After the two lines of heads, both sides of each row agree.
    assert!(rows[2..].iter().all(|row| !row.contains(" x0.") && !row.contains(" x1.1")), "{text}");
}

/// Asserts that a text has no characters that a terminal would obey.
fn assert_plain(text: &str) {
    let bad = text
        .chars()
        .find(|c| c.is_control() && !['\n', '\r'].contains(c) || ['\u{202e}', '\u{2028}'].contains(c));
    assert_eq!(bad, None, "{text:?}");
}

fn hostile_text() {
    let files = Files::new();
    let profile = profile_in(&files, "p", &saved::hostile());
    let trace = trace_in(&files, "t", &saved::hostile_trace());
    for arguments in [&[profile.as_str()][..], &[&trace], &[&profile, &trace]] {
        for format in ["text", "csv", "json"] {
            let text = report(&[arguments, &["--format", format]].concat());
            assert_plain(&text);
            assert!(!text.lines().any(|line| line.trim_start().starts_with("vmm: forged line")), "{text}");
        }
    }
    // The name of a file can be as hostile as its content.
    let named = profile_in(&files, "\u{1b}[2J\nvmm: forged", &saved::simvirtio(1.0));
    assert_plain(&report(&[&named, &profile]));
    let broken = files.write("\u{1b}]0;x\u{7}", b"{\"\x1b[2J\": 1}");
    let ran = ran(&["report", &broken]);
    assert_error(&ran, 116, "the profile is damaged: ");
    assert_plain(&ran.stderr);
}

/// Parses CSV as in RFC 4180.
fn records(text: &str) -> Vec<Vec<String>> {
    let mut records = vec![vec![String::new()]];
    let mut quoted = false;
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let field = records.last_mut().unwrap().last_mut().unwrap();
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => field.extend(chars.next()),
            '"' => quoted = !quoted,
            ',' if !quoted => records.last_mut().unwrap().push(String::new()),
            '\r' if !quoted && chars.peek() == Some(&'\n') => {
                chars.next();
                records.push(vec![String::new()]);
            }
            c => field.push(c),
        }
    }
    assert_eq!(records.pop(), Some(vec![String::new()]), "the last line ends with a line break");
    assert!(records.iter().all(|record| record.len() == records[0].len()), "{records:?}");
    records
}

fn hostile_csv() {
    let files = Files::new();
    let profile = profile_in(&files, "p", &saved::hostile());
    let trace = trace_in(&files, "t", &saved::hostile_trace());
    for arguments in [&[profile.as_str()][..], &[&trace], &[&profile, &trace]] {
        let records = records(&report(&[arguments, &["--format", "csv"]].concat()));
        let device = records[0].iter().position(|head| head == "device").unwrap();
        let mut seen = 0;
        for field in records.iter().skip(1).map(|record| &record[device]) {
            assert!(!field.starts_with(['=', '+', '-', '@', '\t', '\r']), "{field}");
            seen += usize::from(field.starts_with("'=cmd|"));
        }
        assert!(seen > 0, "{arguments:?}");
    }
}

fn hostile_json() {
    let files = Files::new();
    let json: Value =
        serde_json::from_str(&report(&[&profile_in(&files, "p", &saved::hostile()), "--format", "json"]))
            .unwrap();
    let names: Vec<_> =
        json["sites"].as_array().unwrap().iter().filter_map(|site| site["device"].as_str()).collect();
    for name in saved::HOSTILE {
        assert!(names.contains(&name), "{name:?}: {names:?}");
    }
    assert_eq!(
        (&json["format"], &json["version"], &json["kind"]),
        (&"vmm-report".into(), &1.into(), &"profile".into())
    );
}

fn hostile_html() {
    let files = Files::new();
    let profile = profile_in(&files, "p", &saved::hostile());
    let trace = trace_in(&files, "t", &saved::hostile_trace());
    for (arguments, scripts) in [(&[profile.as_str()][..], 1), (&[&trace], 2), (&[&profile, &trace], 1)] {
        let page = report(&[arguments, &["--format", "html"]].concat());
        assert_eq!(page.matches("<script").count(), scripts);
        assert_eq!(page.matches("</script").count(), scripts);
        // The flame graph has a style, a title, and a title for each function.
        let graphs = page.matches("<svg class=\"flame\"").count();
        let titles = 1 + graphs + page.matches("<g><title>").count();
        assert_eq!((page.matches("<style").count(), page.matches("</title").count()), (1 + graphs, titles));
        assert!(!page.contains("<img") && !page.contains("<!--"), "{arguments:?}");
        assert!(page.contains("default-src 'none'"));
    }
}

/// The example profile in `docs/formats.md` is read, and the example reader there reads a trace.
fn documented() {
    let text = include_str!("../docs/formats.md");
    let files = Files::new();
    let block = |language: &str| {
        let begin = format!("```{language}\n");
        let (_, rest) = text.split_once(&begin).unwrap_or_else(|| panic!("no {language}"));
        rest.split_once("\n```").unwrap().0
    };
    let example = block("json");
    let read = Saved::read(example.as_bytes()).unwrap();
    let Saved::Profile(profile) = read else { panic!("a profile") };
    assert_eq!((profile.guest.as_str(), profile.vcpus.len()), ("simvirtio", 1));
    report(&[&files.write("example.json", example.as_bytes())]);
    let trace = saved::boot_trace(50);
    let reader = files.write("reader.py", block("python").as_bytes());
    let ran = match Command::new("python3").arg("--version").output() {
        Ok(_) => run(Command::new("python3")
            .args([&reader, &trace_in(&files, "t", &trace)])
            .stdout(Stdio::piped())),
        Err(_) => return eprintln!("skipped the reader in docs/formats.md: python3 is not installed"),
    };
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let first = trace.records[0];
    let line = format!(
        "{} vCPU {} PIO out 0x3f8 in KVM {} in the VMM {}",
        first.when, first.vcpu, first.in_kvm, first.in_vmm
    );
    assert_eq!(ran.text().lines().next(), Some(line.as_str()));
    assert_eq!(ran.text().lines().count(), 51);
}

/// From a run to the sentence that names the costliest device.
fn run_and_report() {
    let files = Files::new();
    let path = |name: &str| files.0.path().join(name).to_str().unwrap().to_owned();
    let (profile, trace) = (path("run.json"), path("run.trace"));
    let ran = ran(&["simvirtio", "--profile", &format!("json={profile}"), "--trace", &trace]);
    assert_eq!(ran.status, 0, "{}", ran.stderr);
    let text = report(&[&profile]);
    // The times on the software processor are not those of a guest, so its exits count.
    let [found, site] = match text.contains("software processor") {
        true => ["; most exits: simvirtio, ", " of 40 exits; its commonest site: MMIO "],
        false => ["; most time: simvirtio, ", " in 39 exits; its costliest site: MMIO "],
    };
    assert!(text.contains(found) && text.contains(site), "{text}");
    assert!(text.contains("\n15 of 40 exits read TX tail: "), "{text}");
    for caption in ["date  ", "transport  ", "command line  ", "host  ", "kernel  "] {
        assert!(text.contains(caption), "{caption}: {text}");
    }
    assert_eq!(table(&text, "Where the exits come from:").len(), 2 + 9);
    assert_eq!(table(&report(&[&trace]), "The last exits:").len(), 1 + 40);
    // Profile and trace are of the same run, so their counts agree.
    let same: Value = serde_json::from_str(&report(&[&profile, &trace, "--format", "json"])).unwrap();
    let sites = same["sites"].as_array().unwrap();
    assert!(sites.len() == 9 && sites.iter().all(|site| site["exits_delta"] == 0), "{same}");
}
