//! The page of `vmm report --format html` in a real browser: network access, colours, keyboard, tables and timeline.
//! If PAGE_SCREENSHOTS names a directory, the test `pictures` writes screenshots there.
#![allow(clippy::unwrap_used)]

#[path = "support/browser.rs"]
mod browser;
#[path = "support/saved.rs"]
#[allow(dead_code)]
mod saved;
mod support;

use browser::Browser;
use libtest_mimic::{Completion, Failed, Trial};
use std::path::PathBuf;
use std::process::ExitCode;
use support::{Files, ran};

fn main() -> ExitCode {
    support::watchdog();
    let tests = vec![
        browser_test("a_page_uses_no_network_and_logs_no_errors", quiet),
        browser_test("colours_follow_the_system_until_the_button_is_clicked", themes),
        browser_test("all_text_has_enough_contrast", contrast),
        browser_test("tab_reaches_every_control_in_order_and_enter_sorts", keyboard),
        browser_test("columns_sort_by_value_with_empty_cells_last", sorting),
        browser_test("a_filter_shows_the_rows_with_all_words", filter),
        browser_test("hostile_names_stay_text", hostile),
        browser_test("the_timeline_zooms_by_keyboard_and_stays_small", timeline),
        browser_test("a_tooltip_appears_on_focus_and_escape_hides_it", tooltip),
        browser_test("a_page_is_complete_without_scripts", without_scripts),
        browser_test("a_page_says_where_it_is_from_and_what_to_change", origin),
        browser_test("a_page_fits_a_phone_without_horizontal_scrolling", phone),
        browser_test("pictures", pictures),
    ];
    libtest_mimic::run(&support::arguments(), tests).exit_code()
}

/// Makes a test with a browser. Without a browser the test is ignored with a message, or fails if REQUIRE_BROWSER is 1. If
/// REQUIRE_BROWSER is 0, it is always ignored.
fn browser_test(name: &'static str, body: fn(&mut Browser, &Pages)) -> Trial {
    const MISSING: &str = "no chromium here: apt install chromium";
    let required = std::env::var("REQUIRE_BROWSER").unwrap_or_default();
    Trial::ignorable_test(name, move || match browser::installed() {
        _ if required == "0" => Ok(Completion::ignored_with("REQUIRE_BROWSER=0")),
        Some(program) => {
            body(&mut Browser::start(&program, 1280, 900), &Pages::new());
            Ok(Completion::Completed)
        }
        None if required == "1" => Err(Failed::from(format!("REQUIRE_BROWSER=1, and {MISSING}"))),
        None => Ok(Completion::ignored_with(MISSING)),
    })
}

/// Pages that the program writes.
struct Pages(Files);

impl Pages {
    fn new() -> Self {
        Self(Files::new())
    }

    fn of(&self, name: &str, files: &[Vec<u8>]) -> String {
        let page = self.0.0.path().join(format!("{name}.html")).to_str().unwrap().to_owned();
        let named =
            files.iter().enumerate().map(|(index, bytes)| self.0.write(&format!("{name}-{index}"), bytes));
        let named: Vec<_> = named.collect();
        let mut arguments = vec!["report", "--format", "html", "-o", &page];
        arguments.extend(named.iter().map(String::as_str));
        let ran = ran(&arguments);
        assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{name}");
        page
    }

    fn profile(&self) -> String {
        self.of("profile", &[saved::profile_file(&saved::simvirtio(1.0))])
    }

    fn boot(&self) -> String {
        self.of("boot", &[saved::profile_file(&saved::boot())])
    }

    fn trace(&self, exits: usize) -> String {
        self.of("trace", &[saved::trace_file(&saved::boot_trace(exits))])
    }

    fn difference(&self) -> String {
        let files = [1.0, 1.4].map(|slower| saved::profile_file(&saved::simvirtio(slower)));
        self.of("difference", &files)
    }

    fn all(&self) -> Vec<String> {
        vec![self.profile(), self.boot(), self.trace(4000), self.difference()]
    }
}

fn quiet(browser: &mut Browser, pages: &Pages) {
    for page in pages.all() {
        browser.open(&page);
        assert_eq!(browser.problems(&page), [""; 0], "{page}");
        assert_eq!(browser.text("document.querySelectorAll('h1').length"), "1");
    }
    // The policy in the page forbids network access.
    let asked = "fetch('data:,x').then(() => 'answered', () => 'refused')";
    assert_eq!(browser.text(asked), "refused");
    assert!(!browser.problems("").is_empty(), "the console shows the refusal");
}

fn themes(browser: &mut Browser, pages: &Pages) {
    const GROUND: &str = "getComputedStyle(document.documentElement).backgroundColor";
    browser.open(&pages.profile());
    browser.prefer("light");
    let light = browser.text(GROUND);
    browser.prefer("dark");
    let dark = browser.text(GROUND);
    assert_ne!(light, dark);
    for (system, own, other) in [("dark", &dark, &light), ("light", &light, &dark)] {
        browser.prefer(system);
        browser.open(&pages.profile());
        assert_eq!(browser.text(GROUND), *own);
        browser.evaluate("document.getElementById('theme').click()");
        assert_eq!(browser.text(GROUND), *other, "the button changes {system}");
        browser.evaluate("document.getElementById('theme').click()");
        assert_eq!(browser.text(GROUND), *own);
    }
}

/// WCAG 2.1: text needs a contrast of 4.5 to its background (1.4.3), and graphics need 3 (1.4.11).
fn contrast(browser: &mut Browser, pages: &Pages) {
    const POOR: &str = include_str!("support/contrast.js");
    for page in pages.all() {
        for scheme in ["light", "dark"] {
            browser.prefer(scheme);
            browser.open(&page);
            assert_eq!(browser.text(POOR), "", "{scheme}: {page}");
        }
    }
}

/// A script that returns the tag and the name of the focused element.
const FOCUSED: &str = "(() => { const at = document.activeElement; return at.tagName + ' ' + (at.id || at.getAttribute('aria-label') || \
                       at.getAttribute('aria-labelledby') || at.textContent).trim(); })()";

fn keyboard(browser: &mut Browser, pages: &Pages) {
    browser.open(&pages.trace(900));
    let mut stops = Vec::new();
    loop {
        browser.key("Tab");
        let stop = browser.text(FOCUSED);
        if stop.starts_with("BODY") || stops.len() > 120 {
            break;
        }
        let outlined = "getComputedStyle(document.activeElement).outlineStyle !== 'none' || document.activeElement.matches('.skip')";
        assert_eq!(browser.text(outlined), "true", "the focus is visible on {stop}");
        stops.push(stop);
    }
    let place = |wanted: &str| {
        let found = stops.iter().position(|stop| stop == wanted);
        found.unwrap_or_else(|| panic!("{wanted}: {stops:#?}"))
    };
    let order = [
        "A Skip to the content",
        "BUTTON theme",
        "A Where the time goes",
        "A vCPUs",
        "BUTTON Zoom in",
        "BUTTON All",
        "DIV lanes",
        "DIV tip-0",
        "DIV records-title",
        "BUTTON Sort by time, ms",
        "DIV sites-title",
        "BUTTON Sort by in KVM p99",
        "BUTTON Sort by in the VMM max",
    ];
    let places: Vec<_> = order.iter().map(|stop| place(stop)).collect();
    assert!(places.is_sorted() && places[..2] == [0, 1], "{places:?}");

    browser.open(&pages.profile());
    browser.evaluate("document.querySelector('#sites th[data-label=\"in KVM mean\"] button').focus()");
    let sorted =
        "[...document.querySelectorAll('#sites-table tbody tr')].map(row => row.cells[8].dataset.v).join()";
    let before = browser.text(sorted);
    let numbers =
        |text: &str| text.split(',').map(|number| number.parse::<u64>().unwrap()).collect::<Vec<_>>();
    browser.key("Enter");
    let down = browser.text(sorted);
    assert_ne!(before, down);
    assert!(numbers(&down).is_sorted_by(|one, next| one >= next), "{down}");
    assert_eq!(browser.text("document.activeElement.closest('th').getAttribute('aria-sort')"), "descending");
    browser.key("Enter");
    let up = browser.text(sorted);
    assert!(numbers(&up).is_sorted(), "{up}");
    assert_eq!(browser.text("document.querySelectorAll('th[aria-sort]').length"), "1");
    // The skip link leads to the content.
    browser.evaluate("document.querySelector('.skip').focus()");
    browser.key("Enter");
    assert_eq!(browser.text("document.activeElement.id"), "main");
}

fn sorting(browser: &mut Browser, pages: &Pages) {
    let mut profile = saved::boot();
    // A JavaScript number cannot hold these exactly.
    for (site, exits) in profile.machine.sites.iter_mut().zip([u64::MAX, u64::MAX - 1, 9, 10, 1]) {
        site.exits = exits;
    }
    profile.machine.sites[2].in_kvm.p50 = None;
    browser.open(&pages.of("sorting", &[saved::profile_file(&profile)]));
    let click =
        |label: &str| format!("document.querySelector('#sites th[data-label=\"{label}\"] button').click()");
    let column = |index: u32| {
        format!(
            "[...document.querySelectorAll('#sites-table tbody tr')].map(row => row.cells[{index}].textContent).join()"
        )
    };
    browser.evaluate(&click("exits"));
    let exits = browser.text(&column(4));
    assert!(exits.starts_with(&format!("{},{},", u64::MAX, u64::MAX - 1)), "{exits}");
    for _ in 0..2 {
        browser.evaluate(&click("in KVM p50"));
        let medians = browser.text(&column(9));
        assert!(medians.ends_with(','), "unknown medians come last: {medians}");
    }
    browser.evaluate(&click("place"));
    let places = browser.text(&column(1));
    assert!(places.starts_with("0x3a,0x64,0x70,0x71,0x3f8,") && places.ends_with(",0xd0001050,"), "{places}");
}

fn filter(browser: &mut Browser, pages: &Pages) {
    browser.open(&pages.profile());
    browser.evaluate("document.querySelector('#sites input').focus()");
    browser.write("TX mmio");
    let shown =
        "[...document.querySelectorAll('#sites-table tbody tr')].filter(row => row.offsetParent).length";
    assert_eq!(browser.text(shown), "3");
    assert_eq!(browser.text("document.querySelector('#sites output').textContent"), "3 of 9 rows");
    browser.write(" nothing has this");
    assert_eq!(browser.text(shown), "0");
    browser.key("Escape");
    assert_eq!(browser.text(shown), "9");
}

fn hostile(browser: &mut Browser, pages: &Pages) {
    let profile = saved::profile_file(&saved::hostile());
    let trace = saved::trace_file(&saved::hostile_trace());
    for (name, files, scripts) in
        [("p", vec![profile.clone()], 1), ("t", vec![trace.clone()], 2), ("d", vec![profile, trace], 1)]
    {
        let page = pages.of(name, &files);
        browser.open(&page);
        assert_eq!(browser.problems(&page), [""; 0], "{name}");
        assert_eq!(browser.text("document.scripts.length"), scripts.to_string());
        assert_eq!(
            browser
                .text("document.querySelectorAll('img, iframe, [onfocus], [onerror], [autofocus]').length"),
            "0"
        );
        let title = browser.text("document.title");
        assert!(title.ends_with("of VM exits") && title != "owned", "{title}");
        let body = browser.text("document.body.textContent");
        assert!(
            body.contains("<script>document.title='owned'") && body.contains("&lt;b&gt; é ${1}"),
            "{name}: markup is shown as text"
        );
        assert!(
            !body.contains(['\u{1b}', '\u{9b}', '\u{202e}', '\u{2028}']),
            "{name}: control characters are escaped"
        );
    }
    // The description of a record below the timeline is text, too.
    browser.open(&pages.of("t", &[saved::trace_file(&saved::hostile_trace())]));
    browser.evaluate("document.getElementById('lanes').focus()");
    for _ in 0..30 {
        browser.key(".");
    }
    assert_eq!(browser.text("document.querySelectorAll('#record *').length"), "0");
    assert_ne!(browser.text("document.title"), "owned");
}

fn timeline(browser: &mut Browser, pages: &Pages) {
    const RANGE: &str = "document.getElementById('range').textContent";
    const ELEMENTS: &str = "document.querySelectorAll('#timeline *').length";
    let page = pages.trace(60_000);
    browser.open(&page);
    assert!(browser.text(ELEMENTS).parse::<u32>().unwrap() < 60);
    browser.evaluate("document.getElementById('lanes').focus()");
    let whole = browser.text(RANGE);
    // The page has only counts of the first records.
    assert!(whole.contains(" 50000 records, and earlier ones"), "{whole}");
    browser.key("End");
    assert_eq!(browser.text(RANGE), whole, "the view stays within the whole time");
    for _ in 0..9 {
        browser.key("+");
    }
    browser.key("End");
    let zoomed = browser.text(RANGE);
    assert_ne!(zoomed, whole);
    assert!(!zoomed.contains("earlier"), "{zoomed}");
    let single = "document.querySelectorAll('path.kvm[d*=M]').length > 0 && !document.querySelector('.lane path.count[d*=M]')";
    assert_eq!(browser.text(single), "true", "each record is drawn: {zoomed}");
    browser.key("ArrowLeft");
    assert_ne!(browser.text(RANGE), zoomed);
    browser.key(".");
    let first = browser.text("document.getElementById('record').textContent");
    browser.key(".");
    let second = browser.text("document.getElementById('record').textContent");
    let number = |text: &str| text.split('.').next().unwrap().parse::<u32>().unwrap();
    assert_eq!(number(&second), number(&first) + 1, "{first} -> {second}");
    assert!(second.contains("; vCPU ") && second.contains(" in KVM; "), "{second}");
    browser.key(",");
    assert_eq!(browser.text("document.getElementById('record').textContent"), first);
    // The page stays small at the maximum zoom.
    for _ in 0..60 {
        browser.key("+");
    }
    assert!(browser.text(RANGE).contains("(100 ns)"), "{}", browser.text(RANGE));
    assert!(browser.text(ELEMENTS).parse::<u32>().unwrap() < 60);
    browser.key("0");
    assert_eq!(browser.text(RANGE), whole);
    browser.evaluate("document.querySelector('[data-do=\"in\"]').click()");
    assert_ne!(browser.text(RANGE), whole, "the zoom button works, too");
    let longest = "Math.max(...[...document.querySelectorAll('#timeline path')].map(path => path.getAttribute('d').length))";
    assert!(browser.text(longest).parse::<u32>().unwrap() < 100_000);
    assert_eq!(browser.problems(&page), [""; 0]);
}

fn tooltip(browser: &mut Browser, pages: &Pages) {
    browser.open(&pages.profile());
    let seen = "getComputedStyle(document.querySelector('#tip-0')).visibility";
    assert_eq!(browser.text(seen), "hidden");
    browser.evaluate("document.querySelector('.strips').focus()");
    assert_eq!(browser.text(seen), "visible");
    assert!(
        browser.text("document.querySelector('#tip-0').textContent").contains("in KVM: 14 samples, min ")
    );
    browser.key("Escape");
    assert_eq!(browser.text(seen), "hidden");
}

fn without_scripts(browser: &mut Browser, pages: &Pages) {
    browser.call("Emulation.setScriptExecutionDisabled", serde_json::json!({"value": true}));
    for (page, rows) in [(pages.profile(), "9"), (pages.trace(4000), "12")] {
        browser.open(&page);
        assert_eq!(browser.text("document.querySelectorAll('#sites-table tbody tr').length"), rows);
        let dead = "[...document.querySelectorAll('button, input')].filter(one => one.offsetParent).length";
        assert_eq!(browser.text(dead), "0", "no control is visible that would do nothing");
        assert!(browser.text("document.querySelectorAll('svg path').length").parse::<u32>().unwrap() > 2);
    }
}

fn origin(browser: &mut Browser, pages: &Pages) {
    let text = |browser: &mut Browser, of: &str| {
        browser.text(&format!("document.querySelector('{of}').textContent"))
    };
    browser.open(&pages.profile());
    let facts = text(browser, ".facts");
    for known in
        ["2026-11-29T07:16:40Z", "laboratory", "Test CPU", "6.1.0", "vmm run simvirtio", "transportexit"]
    {
        assert!(facts.contains(known), "{known}: {facts}");
    }
    let first = text(browser, ".headline");
    assert!(first.starts_with("15 of 40 exits read TX tail: "), "{first}");
    let whole = browser.text("document.querySelector('main').textContent");
    assert!(whole.contains("n = 15") && whole.contains(" \u{b5}s") && !whole.contains(" us"), "{whole}");

    browser.open(&pages.difference());
    let names = text(browser, "h1");
    assert!(
        names.contains("difference-1 (B) compared with ") && names.contains("difference-0 (A)"),
        "{names}"
    );
    assert!(text(browser, "#time .how").contains("difference-1"));

    // The whole time of a trace has bars for its longest exits, and times below it.
    browser.open(&pages.trace(4000));
    let bars = "[...document.querySelectorAll('.long')].map(one => one.getAttribute('d')).join('').split('M').length";
    assert!(browser.text(bars).parse::<u32>().unwrap() > 2);
    assert_eq!(browser.text("document.querySelectorAll('#times div span').length"), "5");
}

fn phone(browser: &mut Browser, pages: &Pages) {
    browser.resize(360, 740);
    for page in pages.all() {
        browser.open(&page);
        assert_eq!(browser.text("document.documentElement.scrollWidth"), "360", "{page}");
        let small = "[...document.querySelectorAll('body *')].filter(one => one.offsetParent && parseFloat(getComputedStyle(one).fontSize) < 9)\
                     .length";
        assert_eq!(browser.text(small), "0");
    }
    // The names of the sites leave room for the first numbers.
    browser.open(&pages.profile());
    let right =
        "document.querySelector('#sites-table tbody td:nth-child(6)').getBoundingClientRect().right <= 360";
    assert_eq!(browser.text(right), "true");
}

/// Takes screenshots of each page, wide and narrow, light and dark.
fn pictures(browser: &mut Browser, pages: &Pages) {
    let folder = std::env::var_os("PAGE_SCREENSHOTS").map(PathBuf::from);
    for (name, page) in ["profile", "boot", "trace", "difference"].iter().zip(pages.all()) {
        let mut seen = Vec::new();
        for (scheme, width) in [("light", 1280), ("dark", 1280), ("light", 390), ("dark", 390)] {
            browser.resize(width, 900);
            browser.prefer(scheme);
            browser.open(&page);
            if *name == "trace" {
                browser.evaluate("document.getElementById('lanes').focus({preventScroll: true})");
                ["+", "+", "+", "+", "+", "+", "+", "."].iter().for_each(|key| browser.key(key));
            }
            let picture = browser.screenshot(true);
            assert!(picture.starts_with(b"\x89PNG") && picture.len() > 10_000, "{name}");
            if let Some(folder) = &folder {
                std::fs::write(folder.join(format!("{name}-{scheme}-{width}.png")), &picture).unwrap();
            }
            seen.push(picture);
        }
        assert_ne!(seen[0], seen[1]);
        assert_ne!(seen[2], seen[3]);
    }
}
