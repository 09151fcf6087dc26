//! Tests of the files. `pprof` is read back by a small reader of protocol buffers.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects)]

use super::*;
use serde_json::Value;

fn guest(name: &str) -> StackFrame {
    StackFrame::guest(name, None)
}

/// Three stacks: `hot` is called by `main`, and once the VMM works for it.
fn samples() -> Samples {
    let mut samples = Samples { rate: Some(1000), cost_ns: 5, ..Samples::default() };
    let hot = || StackFrame::guest("hot", Some(("hot.c", Some(7))));
    samples.add([guest("main"), hot()], 6);
    samples.add([guest("main")], 1);
    samples.add([guest("main"), hot(), StackFrame::part(Part::Vmm, "PIO out 0xe9 (debugcon)")], 3);
    samples
}

fn written(samples: &Samples, format: StackFormat, title: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    samples.write(&mut bytes, format, title).unwrap();
    bytes
}

fn text(samples: &Samples, format: StackFormat) -> String {
    String::from_utf8(written(samples, format, "guest <&\"'>\n.elf")).unwrap()
}

#[test]
fn folded_stacks_are_lines_that_can_be_read_again() {
    let samples = samples();
    let folded = text(&samples, StackFormat::Folded);
    assert_eq!(folded, "main 1\nmain;hot 6\nmain;hot;[VMM] PIO out 0xe9 (debugcon) 3\n");
    let saved = SavedSamples::from(&samples);
    let read = saved.samples().unwrap();
    assert_eq!(text(&read, StackFormat::Folded), folded);
    assert_eq!((read.parts(), read.total()), (samples.parts(), 10));
    assert_eq!(samples.parts(), [7, 0, 3, 0, 0]);
}

#[test]
fn the_table_has_shares_and_functions() {
    assert_eq!(
        hottest(&samples()),
        "vmm: the samples are 70.0% guest, 30.0% VMM
   samples    self  total  function
         9   90.0%  90.0%  hot
         1   10.0% 100.0%  main
"
    );
    assert_eq!(hottest(&Samples::default()), "");
    // A function that calls itself is counted once.
    let mut recursive = Samples::default();
    recursive.add([guest("f"), guest("f"), guest("f")], 4);
    assert!(
        hottest(&recursive).ends_with("     exits    self  total  function\n         4  100.0% 100.0%  f\n")
    );
}

#[test]
fn lines_that_are_damaged_are_refused() {
    for line in ["", "main", "main x", "main -1", "main 18446744073709551616"] {
        let saved = SavedSamples { stacks: vec![line.into()], ..SavedSamples::default() };
        assert!(saved.check().is_err(), "{line}");
    }
    let deep = format!("{} 1", "f;".repeat(MOST_FRAMES));
    assert!(SavedSamples { stacks: vec![deep], ..SavedSamples::default() }.check().is_err());
    let many = vec!["f 1".into(); MOST_STACKS + 1];
    assert!(SavedSamples { stacks: many, ..SavedSamples::default() }.check().is_err());
}

#[test]
fn too_many_stacks_are_counted_as_lost() {
    let mut samples = Samples::default();
    (0..MOST_STACKS + 5).for_each(|number| samples.add([guest(&number.to_string())], 2));
    assert_eq!((samples.lost, samples.total()), (10, 2 * MOST_STACKS as u64));
}

/// A field of a message: its number, and its value.
#[derive(Debug, PartialEq)]
enum Field<'a> {
    Number(u64, u64),
    Bytes(u64, &'a [u8]),
}

fn varint(bytes: &mut &[u8]) -> u64 {
    let mut value = 0;
    for shift in (0..).step_by(7) {
        let byte = bytes[0];
        *bytes = &bytes[1..];
        value |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            break;
        }
    }
    value
}

fn fields(mut bytes: &[u8]) -> Vec<Field<'_>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let value = varint(&mut bytes);
        fields.push(match key & 7 {
            0 => Field::Number(key >> 3, value),
            2 => {
                let (inner, rest) = bytes.split_at(value as usize);
                bytes = rest;
                Field::Bytes(key >> 3, inner)
            }
            other => panic!("wire type {other}"),
        });
    }
    fields
}

fn of<'a>(fields: &[Field<'a>], number: u64) -> Vec<&'a [u8]> {
    let inner = |field: &Field<'a>| match field {
        Field::Bytes(at, bytes) if *at == number => Some(*bytes),
        _ => None,
    };
    fields.iter().filter_map(inner).collect()
}

fn number(fields: &[Field<'_>], number: u64) -> u64 {
    let value = |field: &Field<'_>| match field {
        Field::Number(at, value) if *at == number => Some(*value),
        _ => None,
    };
    fields.iter().find_map(value).unwrap_or(0)
}

fn packed(mut bytes: &[u8]) -> Vec<u64> {
    let mut values = Vec::new();
    while !bytes.is_empty() {
        values.push(varint(&mut bytes));
    }
    values
}

#[test]
fn pprof_has_the_stacks_and_their_names() {
    let file = written(&samples(), StackFormat::Pprof, "guest");
    let file = fields(&file);
    let texts: Vec<_> = of(&file, 6).iter().map(|text| str::from_utf8(text).unwrap()).collect();
    assert_eq!(texts[0], "");
    let types: Vec<_> = of(&file, 1).iter().map(|kind| fields(kind)).collect();
    let types: Vec<_> =
        types.iter().map(|kind| (texts[number(kind, 1) as usize], texts[number(kind, 2) as usize])).collect();
    assert_eq!(types, [("samples", "count"), ("time", "nanoseconds")]);
    let functions: Vec<_> = of(&file, 5).iter().map(|function| fields(function)).collect();
    let function = |id: u64| {
        let function = functions.iter().find(|function| number(function, 1) == id).unwrap();
        (texts[number(function, 2) as usize], texts[number(function, 4) as usize])
    };
    let locations: Vec<_> = of(&file, 4).iter().map(|location| fields(location)).collect();
    let location = |id: &u64| {
        let location = locations.iter().find(|location| number(location, 1) == *id).unwrap();
        let line = fields(of(location, 4)[0]);
        (function(number(&line, 1)), number(&line, 2))
    };
    let stacks: Vec<_> = of(&file, 2).iter().map(|sample| fields(sample)).collect();
    let values: Vec<_> = stacks.iter().map(|sample| packed(of(sample, 2)[0])).collect();
    assert_eq!(values, [[1, 1_000_000], [6, 6_000_000], [3, 3_000_000]]);
    let last: Vec<_> = packed(of(&stacks[2], 1)[0]).iter().map(location).collect();
    let vmm = ("[VMM] PIO out 0xe9 (debugcon)", "");
    assert_eq!(last, [(vmm, 0), (("hot", "hot.c"), 7), (("main", ""), 0)]);
    assert_eq!(number(&file, 12), 1_000_000);
}

/// Checks the tables of a Firefox profile: lengths, and indices.
fn check_firefox(file: &Value) {
    let thread = &file["threads"][0];
    for table in
        ["frameTable", "funcTable", "stackTable", "samples", "resourceTable", "nativeSymbols", "markers"]
    {
        let table = thread[table].as_object().unwrap();
        let length = table["length"].as_u64().unwrap() as usize;
        for (name, column) in table {
            assert!(column.as_array().is_none_or(|column| column.len() == length), "{name}");
        }
    }
    let in_range = |table: &str, column: &str, of: usize| {
        for index in thread[table][column].as_array().unwrap().iter().filter(|index| !index.is_null()) {
            assert!((index.as_u64().unwrap() as usize) < of, "{table} {column} {index}");
        }
    };
    let length = |table: &str| thread[table]["length"].as_u64().unwrap() as usize;
    let texts = thread["stringArray"].as_array().unwrap().len();
    let categories = file["meta"]["categories"].as_array().unwrap().len();
    in_range("samples", "stack", length("stackTable"));
    in_range("stackTable", "prefix", length("stackTable"));
    in_range("stackTable", "frame", length("frameTable"));
    in_range("stackTable", "category", categories);
    in_range("frameTable", "category", categories);
    in_range("frameTable", "func", length("funcTable"));
    in_range("funcTable", "name", texts);
    in_range("funcTable", "fileName", texts);
    for (place, prefix) in thread["stackTable"]["prefix"].as_array().unwrap().iter().enumerate() {
        assert!(
            prefix.as_u64().is_none_or(|prefix| (prefix as usize) < place),
            "a prefix is before its stack"
        );
    }
}

#[test]
fn a_firefox_profile_has_complete_tables() {
    let file: Value = serde_json::from_str(&text(&samples(), StackFormat::Firefox)).unwrap();
    assert_eq!(
        (&file["meta"]["preprocessedProfileVersion"], &file["meta"]["interval"]),
        (&48.into(), &1.0.into())
    );
    check_firefox(&file);
    let thread = &file["threads"][0];
    assert_eq!(thread["samples"]["weight"], serde_json::json!([1, 6, 3]));
    assert_eq!(
        thread["stringArray"],
        serde_json::json!(["main", "hot", "[VMM] PIO out 0xe9 (debugcon)", "hot.c"])
    );
    let empty = Samples::default();
    check_firefox(&serde_json::from_str(&text(&empty, StackFormat::Firefox)).unwrap());
}

/// Checks that a text is well-formed XML, as far as the pictures go: elements are closed in order, and texts are escaped.
fn check_xml(text: &str) {
    let mut open = Vec::new();
    let body = text.strip_prefix("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n").unwrap();
    for (number, piece) in body.split('<').enumerate() {
        let Some((tag, rest)) = piece.split_once('>') else {
            assert_eq!((number, piece), (0, ""));
            continue;
        };
        assert!(!rest.contains('>'), "{rest}");
        for entity in rest.split('&').skip(1).chain(tag.split('&').skip(1)) {
            let name = entity.split_once(';').unwrap().0;
            assert!(["amp", "lt", "gt", "quot", "#39"].contains(&name), "{entity}");
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        match tag.strip_prefix('/') {
            Some(name) => assert_eq!(open.pop(), Some(name)),
            None if tag.ends_with('/') => {}
            None => open.push(tag.split(' ').next().unwrap()),
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn a_picture_is_well_formed_and_needs_nothing_else() {
    let picture = text(&samples(), StackFormat::Svg);
    check_xml(&picture);
    assert!(!picture.replace("http://www.w3.org/2000/svg", "").contains("http"), "{picture}");
    assert!(!picture.contains("<script") && !picture.contains("href"));
    assert!(picture.contains("<title>hot\n90.00 %, 9 of 10; itself 60.00 %</title>"), "{picture}");
    assert!(picture.contains("10 samples, 1000 a second") && picture.contains("30.0 % VMM"));
    // `hot` is above `main`, and as wide as its share.
    assert!(picture.contains("class=\"guest\" x=\"10.0\" y=\"98.0\" width=\"1180.0\""), "{picture}");
    assert!(picture.contains("class=\"guest\" x=\"10.0\" y=\"80.0\" width=\"1062.0\""), "{picture}");
    check_xml(&text(&Samples::default(), StackFormat::Svg));
    let mut element = Vec::new();
    SavedSamples::from(&samples()).write_svg(&mut element).unwrap();
    assert!(String::from_utf8(element).unwrap().starts_with("<svg class=\"flame\""));
}

#[test]
fn names_that_a_guest_chooses_do_no_harm() {
    let mut samples = Samples { rate: Some(1), ..Samples::default() };
    let long = "x".repeat(100_000);
    let wide = "\u{1f600}".repeat(1000);
    let names = [
        "<script>alert(1)</script>",
        "a\"b'c&d",
        "line\nend",
        "semi;colon 5",
        "[VMM] fake",
        "",
        "\u{1b}[2J",
        &long,
        &wide,
    ];
    for name in names {
        samples.add([guest("main"), guest(name)], 1);
    }
    assert_eq!(samples.parts(), [9, 0, 0, 0, 0], "no name of the guest is another part");
    let folded = text(&samples, StackFormat::Folded);
    assert_eq!(folded.lines().count(), 9, "{folded}");
    assert!(folded.lines().all(|line| line.matches(';').count() == 1 && line.ends_with(" 1")), "{folded}");
    assert!(folded.lines().all(|line| line.len() < 4000) && !folded.contains('\u{1b}'));
    let picture = text(&samples, StackFormat::Svg);
    check_xml(&picture);
    assert!(!picture.contains("<script"), "{picture}");
    check_firefox(&serde_json::from_str(&text(&samples, StackFormat::Firefox)).unwrap());
    assert_eq!(of(&fields(&written(&samples, StackFormat::Pprof, "guest")), 2).len(), 9);
}
