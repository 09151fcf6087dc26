//! The layers of the project: a lower layer never imports a higher one. Also, no package has an unused dependency.
//!
//! The tests read the source files. They look at `use` declarations and at paths in the code.
#![allow(clippy::unwrap_used, reason = "a test that cannot read its sources fails")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

/// The packages, from the top down. Each may depend only on those below it.
const PACKAGES: [&str; 18] = [
    "packaging",
    "bench",
    "campaign",
    "differ",
    "cli",
    "commands",
    "lab",
    "debug",
    "exercise",
    "grades",
    "gdb",
    "observe",
    "jail",
    "report",
    "vmm",
    "softcpu",
    "guest",
    "simvirtio",
];

/// The layers of `vmm/src`, from the top down. Each may import only those below it. docs/design.md shows the same table.
const LAYERS: [&str; 18] = [
    "lab",
    "machine",
    "run",
    "kvm",
    "soft",
    "controller",
    "boot",
    "device",
    "x86",
    "console",
    "memory",
    "shutdown",
    "profile",
    "error",
    "exit",
    "file_format",
    "host",
    "lib",
];

/// Returns the folder of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Returns all Rust files below `folder`, except build results.
fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

/// Returns the path of a file's module: `["device", "bus"]` for `device/bus.rs`, `["device"]` for `device/mod.rs`.
fn module(file: &Path, base: &Path) -> Vec<String> {
    let path = file.strip_prefix(base).unwrap().with_extension("");
    let mut parts: Vec<String> = path.iter().map(|part| part.to_str().unwrap().into()).collect();
    if parts.last().is_some_and(|last| ["mod", "lib"].contains(&last.as_str())) {
        parts.pop();
    }
    parts
}

/// Returns the paths that begin with `crate::` or `super::` in a line of code, with expanded braces: `crate::a::{b, c::d}`
/// results in `crate::a::b` and `crate::a::c::d`.
fn paths(code: &str) -> Vec<String> {
    let mut found = Vec::new();
    for start in ["crate::", "super::"] {
        let mut rest = code;
        while let Some(at) = rest.find(start) {
            let before = rest[..at].chars().next_back();
            let path = &rest[at..];
            rest = &rest[at + start.len()..];
            // Skip a match in the middle of another path or name.
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':' || c == '$') {
                continue;
            }
            expand("", path, &mut found);
        }
    }
    found
}

/// Adds the paths of `prefix` and a path with braces, which begins `text`.
fn expand(prefix: &str, text: &str, found: &mut Vec<String>) {
    let name = |c: char| c.is_alphanumeric() || c == '_' || c == ':' || c == '*';
    let end = text.find(|c| !name(c)).unwrap_or(text.len());
    let head = format!("{prefix}{}", &text[..end]);
    let Some(inner) = text[end..].strip_prefix('{').filter(|_| head.ends_with("::")) else {
        found.push(head.trim_end_matches(':').into());
        return;
    };
    let (mut depth, mut item) = (0, String::new());
    for c in inner.chars() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                expand(&head, item.trim(), found);
                item.clear();
                continue;
            }
            _ => {}
        }
        item.push(c);
    }
    if !item.trim().is_empty() {
        expand(&head, item.trim(), found);
    }
}

/// A line of code, or a `use` declaration of several lines.
struct Statement {
    /// The line number.
    line: usize,
    /// The code, without comments.
    code: String,
    /// If set, the statement is indented: it is in a function, or in a module inside the file.
    nested: bool,
}

/// Returns the statements of a file.
fn statements(text: &str) -> Vec<Statement> {
    let mut found: Vec<Statement> = Vec::new();
    let mut open = false;
    for (number, line) in (1..).zip(text.lines()) {
        let code = line.split("//").next().unwrap().trim();
        if open && let Some(statement) = found.last_mut() {
            statement.code.push_str(code);
        } else {
            found.push(Statement { line: number, code: code.into(), nested: line.starts_with(' ') });
        }
        let statement = &found.last().unwrap().code;
        let declares = ["use ", "pub use ", "pub(crate) use ", "pub(super) use "];
        open = declares.iter().any(|declares| statement.starts_with(declares)) && !statement.ends_with(';');
    }
    found
}

/// Returns the absolute module path of an import, or `None` if it leads out of the crate.
fn absolute(path: &str, here: &[String], nested: bool) -> Option<Vec<String>> {
    let mut parts: Vec<String> = path.split("::").map(Into::into).collect();
    if parts[0] == "crate" {
        parts.remove(0);
        return Some(parts);
    }
    let mut base = here.to_vec();
    // The parent of a module inside the file is the module of the file.
    if nested && path.starts_with("super::") {
        base.push("tests".into());
    }
    while parts.first().is_some_and(|part| part == "super") {
        base.pop()?;
        parts.remove(0);
    }
    Some(base.into_iter().chain(parts).collect())
}

/// An import of one file of `vmm/src` from another.
struct Import {
    from: Vec<String>,
    to: Vec<String>,
    place: String,
    path: String,
}

/// Returns all imports in `vmm/src`.
fn imports() -> Vec<Import> {
    let base = root().join("vmm/src");
    let mut found = Vec::new();
    for file in sources(&base) {
        let here = module(&file, &base);
        let shown = file.strip_prefix(root()).unwrap().display().to_string();
        for Statement { line, code, nested } in statements(&fs::read_to_string(&file).unwrap()) {
            for path in paths(&code) {
                // In a function, `super` is the parent of the file's module. In a module inside the file, it is the file's module.
                let both = [nested, false].map(|nested| absolute(&path, &here, nested));
                let outer = both[1]
                    .clone()
                    .filter(|to| here.len() == 1 && to.first().is_some_and(|name| is_layer(name)));
                let Some(to) = outer.or(both[0].clone()) else { continue };
                found.push(Import { from: here.clone(), to, place: format!("{shown}:{line}"), path });
            }
        }
    }
    assert!(found.len() > 300, "only {} imports were found", found.len());
    found
}

fn is_layer(name: &str) -> bool {
    LAYERS.contains(&name)
}

/// Returns the position of a module's layer in [`LAYERS`].
fn layer(module: &[String]) -> Option<usize> {
    let name = module.first().map_or("lib", String::as_str);
    LAYERS.iter().position(|layer| *layer == name)
}

#[test]
fn no_layer_imports_a_higher_one() {
    let mut wrong = Vec::new();
    for import in imports() {
        let from =
            layer(&import.from).unwrap_or_else(|| panic!("{}: the file is not in a layer", import.place));
        // The root re-exports items of all layers. A layer that imports those hides where they live.
        let to = layer(&import.to).filter(|to| LAYERS[*to] != "lib");
        match to {
            _ if import.from.is_empty() => {}
            None => wrong.push(format!("{}: {} is not in a layer", import.place, import.path)),
            Some(to) if to < from => wrong.push(format!(
                "{}: {} (layer {}) imports {} of the higher layer {}",
                import.place,
                import.from.join("::"),
                LAYERS[from],
                import.path,
                LAYERS[to]
            )),
            Some(_) => {}
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn no_two_files_of_different_folders_import_each_other() {
    let base = root().join("vmm/src");
    let files: BTreeSet<Vec<String>> = sources(&base).iter().map(|file| module(file, &base)).collect();
    // The folder of a module's file. A mod.rs belongs to the folder that it is in.
    let folder = |module: &[String]| {
        let inner = files.iter().any(|other| other.len() > module.len() && other.starts_with(module));
        module[..module.len().saturating_sub(usize::from(!inner))].to_vec()
    };
    let mut edges: BTreeMap<(Vec<String>, Vec<String>), String> = BTreeMap::new();
    for import in imports() {
        let Some(to) =
            (0..=import.to.len()).rev().map(|len| import.to[..len].to_vec()).find(|to| files.contains(to))
        else {
            continue;
        };
        if !to.is_empty() && !import.from.is_empty() && folder(&to) != folder(&import.from) {
            edges.entry((import.from, to)).or_insert(import.place);
        }
    }
    // A mod.rs re-exports the other files of its folder, and they may use its traits.
    let related = |a: &[String], b: &[String]| a.starts_with(b) || b.starts_with(a);
    let mut wrong = Vec::new();
    for ((from, to), place) in &edges {
        if let Some(back) = edges.get(&(to.clone(), from.clone()))
            && !related(from, to)
        {
            wrong.push(format!(
                "{place} and {back}: {} and {} import each other",
                from.join("/"),
                to.join("/")
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Returns the names in these sections of a folder's Cargo.toml.
fn dependencies(folder: &str, sections: &[&str]) -> Vec<String> {
    let manifest = fs::read_to_string(root().join(folder).join("Cargo.toml")).unwrap();
    let (mut found, mut wanted) = (Vec::new(), false);
    for line in manifest.lines() {
        if line.starts_with('[') {
            // The dependencies of one kind of target are in `[target.'cfg(...)'.dependencies]`.
            let section =
                if line.starts_with("[target.") { line.rsplit_once('.').map(|(_, name)| name) } else { None };
            let section = section.map_or(line.into(), |name| format!("[{name}"));
            wanted = sections.contains(&section.as_str());
        } else if let Some(name) = line.split(['.', ' ', '=']).next()
            && wanted
            && !name.is_empty()
            && !name.starts_with('#')
        {
            found.push(name.into());
        }
    }
    found
}

#[test]
fn no_package_depends_on_a_higher_one() {
    for (place, package) in PACKAGES.iter().enumerate() {
        let dependencies = dependencies(package, &["[dependencies]"]);
        for higher in &PACKAGES[..place] {
            let named = dependencies.iter().any(|name| name == higher);
            assert!(!named, "{package}/Cargo.toml: depends on {higher}, which stands above it");
        }
    }
}

/// True if the code names this crate: in a path or in a `use` declaration.
fn names(text: &str, krate: &str) -> bool {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    code.flat_map(|line| {
        line.match_indices(krate).map(move |(at, _)| (&line[..at], &line[at + krate.len()..]))
    })
    .any(|(before, after)| {
        let whole = !before.ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':');
        whole && (after.starts_with("::") || before.ends_with("use ") && after.starts_with([';', ' ', ',']))
    })
}

/// The tests of `cli` are in the folder `tests`.
#[test]
fn every_dependency_is_used() {
    const USED: [&str; 2] = ["[dependencies]", "[build-dependencies]"];
    const DECLARED: [&str; 3] = ["[dependencies]", "[dev-dependencies]", "[build-dependencies]"];
    let mut declared = BTreeSet::new();
    let mut wrong = Vec::new();
    for package in PACKAGES.iter().chain(&["fuzz"]) {
        let mut files = sources(&root().join(package));
        match *package {
            "cli" => files.extend(sources(&root().join("tests"))),
            "bench" => files.push(root().join("tests/support/kvm.rs")),
            _ => {}
        }
        let texts: Vec<_> = files.iter().map(|file| fs::read_to_string(file).unwrap()).collect();
        for name in dependencies(package, &USED) {
            if !texts.iter().any(|text| names(text, &name.replace('-', "_"))) {
                wrong.push(format!("{package}/Cargo.toml: nothing uses {name}"));
            }
        }
        declared.extend(dependencies(package, &DECLARED));
    }
    for name in dependencies("", &["[workspace.dependencies]"]) {
        if !declared.contains(&name) {
            wrong.push(format!("Cargo.toml: no package depends on {name}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_names_of_crates_are_found_in_code_only() {
    for (code, named) in [
        ("use libc::c_int;", true),
        ("use libc;", true),
        ("let x = libc::open();", true),
        ("    unsafe { libc::close(3) }", true),
        ("// libc::open is better", false),
        ("let x = vmm_libc::open();", false),
        ("let x = crate::libc::open();", false),
        ("let libc = 1;", false),
        ("", false),
    ] {
        assert_eq!(names(code, "libc"), named, "{code}");
    }
}

#[test]
fn the_design_shows_the_same_layers() {
    let design = fs::read_to_string(root().join("docs/design.md")).unwrap();
    let rows = design.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let shown: Vec<&str> = rows.map(|name| name.trim_end_matches('/').trim_end_matches(".rs")).collect();
    let place =
        shown.iter().position(|name| *name == LAYERS[0]).expect("docs/design.md has a table of the layers");
    assert_eq!(shown.get(place..place + LAYERS.len() - 1), Some(&LAYERS[..LAYERS.len() - 1]));
}

#[test]
fn the_library_has_at_most_ten_public_modules() {
    let library = fs::read_to_string(root().join("vmm/src/lib.rs")).unwrap();
    let public: Vec<&str> = library.lines().filter_map(|line| line.strip_prefix("pub mod ")).collect();
    // `internals` is hidden from the documentation, and exists only with the feature of the same name.
    let documented = public.iter().filter(|name| !name.starts_with("internals"));
    assert!(documented.count() <= 10, "{public:?}");
}

#[test]
fn imports_are_found_in_all_forms() {
    let read = |code: &str| {
        let mut found: Vec<String> =
            statements(code).iter().flat_map(|statement| paths(&statement.code)).collect();
        found.sort();
        found
    };
    assert_eq!(
        read("use crate::a::{\n    b, // a comment\n    c::{D, e},\n};"),
        ["crate::a::b", "crate::a::c::D", "crate::a::c::e"]
    );
    assert_eq!(read("let x = crate::a::f(super::g());"), ["crate::a::f", "super::g"]);
    assert_eq!(read("// use crate::a;\nuse vmm_crate::a;"), [""; 0]);
    let here = ["device".to_string(), "bus".to_string()];
    assert_eq!(absolute("super::super::exit::Exit", &here, false).unwrap(), ["exit", "Exit"]);
    assert_eq!(absolute("super::Device", &here, false).unwrap(), ["device", "Device"]);
    assert_eq!(absolute("super::Bus", &here, true).unwrap(), ["device", "bus", "Bus"]);
}
