//! The processed format of the Firefox Profiler, version 48 (`docs-developer/CHANGELOG-formats.md` in its repository). Later
//! versions of profiler.firefox.com upgrade it when they load it.

use super::{Part, Samples};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::io::{self, Write};

/// The version of the processed format, and that of the format that Firefox itself writes.
const PROCESSED: u32 = 48;
const GECKO: u32 = 27;
/// The colours of the categories, in the order of the parts.
const COLORS: [&str; Part::ALL.len()] = ["orange", "purple", "blue", "grey", "green"];

pub(super) fn write(to: &mut dyn Write, samples: &Samples, title: &str) -> io::Result<()> {
    let categories = Part::ALL.into_iter().zip(COLORS);
    let categories: Vec<_> = categories
        .map(|(part, color)| json!({"name": part.name(), "color": color, "subcategories": ["Other"]}))
        .collect();
    let interval = samples.period() as f64 / 1e6;
    let file = json!({
        "meta": {
            "version": GECKO, "preprocessedProfileVersion": PROCESSED, "processType": 0, "product": title,
            "interval": if interval > 0.0 { interval } else { 1.0 }, "startTime": 0, "stackwalk": 1, "debug": false,
            "symbolicated": true, "categories": categories, "markerSchema": [], "pausedRanges": [],
            "sampleUnits": {"time": "ms", "eventDelay": "ms", "threadCPUDelta": "ns"},
            "extensions": {"length": 0, "baseURL": [], "id": [], "name": []},
            "usesOnlyOneStackType": true, "doesNotUseFrameImplementation": true, "sourceCodeIsNotOnSearchfox": true,
        },
        "libs": [],
        "threads": [thread(samples, title)],
    });
    serde_json::to_writer(&mut *to, &file)?;
    to.write_all(b"\n")
}

/// The texts of the thread.
#[derive(Default)]
struct Texts<'a>(Vec<&'a str>, HashMap<&'a str, usize>);

impl<'a> Texts<'a> {
    fn index(&mut self, text: &'a str) -> usize {
        let next = self.0.len();
        let index = *self.1.entry(text).or_insert(next);
        if index == next {
            self.0.push(text);
        }
        index
    }
}

/// The only thread: the vCPUs are the outermost frames, if there are several.
fn thread(samples: &Samples, title: &str) -> Value {
    let mut texts = Texts::default();
    let frames = &samples.frames;
    let names: Vec<_> = frames.iter().map(|frame| texts.index(&frame.name)).collect();
    let files: Vec<_> = frames
        .iter()
        .map(|frame| if frame.file.is_empty() { Value::Null } else { texts.index(&frame.file).into() })
        .collect();
    let lines: Vec<_> = frames.iter().map(|frame| frame.line).collect();
    let parts: Vec<_> = frames.iter().map(|frame| frame.part.index()).collect();
    let count = frames.len();
    let all = |value: Value| vec![value; count];
    let indices: Vec<_> = (0..count).collect();
    let (stack_table, sample_table) = stacks(samples);
    json!({
        "name": title, "processName": title, "processType": "default", "isMainThread": true, "pid": "0", "tid": 0,
        "processStartupTime": 0, "processShutdownTime": null, "registerTime": 0, "unregisterTime": null, "pausedRanges": [],
        "frameTable": {
            "length": count, "address": all((-1).into()), "inlineDepth": all(0.into()), "category": parts,
            "subcategory": all(0.into()), "func": indices, "nativeSymbol": all(Value::Null),
            "innerWindowID": all(Value::Null), "implementation": all(Value::Null), "line": lines,
            "column": all(Value::Null),
        },
        "funcTable": {
            "length": count, "name": names, "isJS": all(false.into()), "relevantForJS": all(false.into()),
            "resource": all((-1).into()), "fileName": files, "lineNumber": all(Value::Null),
            "columnNumber": all(Value::Null),
        },
        "stackTable": stack_table,
        "samples": sample_table,
        "resourceTable": {"length": 0, "lib": [], "name": [], "host": [], "type": []},
        "nativeSymbols": {"length": 0, "address": [], "functionSize": [], "libIndex": [], "name": []},
        "markers": {"length": 0, "category": [], "data": [], "endTime": [], "name": [], "phase": [], "startTime": []},
        "stringArray": texts.0,
    })
}

/// The tables of stacks and of samples: an entry of samples for each stack, with its number of samples as the weight.
fn stacks(samples: &Samples) -> (Value, Value) {
    let mut known: HashMap<(Option<usize>, u32), usize> = HashMap::new();
    let (mut frames, mut prefixes, mut categories) = (Vec::new(), Vec::new(), Vec::new());
    let (mut stacks, mut weights, mut times) = (Vec::new(), Vec::new(), Vec::new());
    let interval = samples.period() as f64 / 1e6;
    let mut time = 0.0;
    for (stack, count) in samples.sorted() {
        let mut prefix = None;
        for frame in stack {
            let next = frames.len();
            let place = *known.entry((prefix, *frame)).or_insert(next);
            if place == next {
                frames.push(*frame);
                prefixes.push(prefix);
                categories.push(samples.frames.get(*frame as usize).map_or(0, |frame| frame.part.index()));
            }
            prefix = Some(place);
        }
        stacks.push(prefix);
        weights.push(count);
        times.push(time);
        time += if interval > 0.0 { interval * count as f64 } else { count as f64 };
    }
    let subcategories = vec![0; frames.len()];
    let stack_table = json!({
        "length": frames.len(), "frame": frames, "prefix": prefixes, "category": categories,
        "subcategory": subcategories,
    });
    let sample_table = json!({
        "length": stacks.len(), "stack": stacks, "weight": weights, "weightType": "samples", "time": times,
    });
    (stack_table, sample_table)
}
