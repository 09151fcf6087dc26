//! The manifests of the packages: those for the registry are complete.
#![allow(clippy::unwrap_used, reason = "a test that cannot read its sources fails")]

use std::fs;
use std::path::{Path, PathBuf};

/// Returns the folder of the workspace.
fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Returns the members of the workspace.
fn packages() -> Vec<String> {
    let workspace = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let members = workspace.lines().find_map(|line| line.strip_prefix("members = [")).unwrap();
    members.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

/// The packages that are not for the registry.
const UNPUBLISHED: [&str; 4] = ["bench", "campaign", "differ", "packaging"];

/// Returns the package's entry `key = value` of a manifest, without quotes.
fn entry<'a>(manifest: &'a str, key: &str) -> Option<&'a str> {
    let package = manifest.split("\n[").next()?;
    let line = package.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "))?;
    Some(line.trim_matches('"'))
}

#[test]
fn every_package_of_the_registry_is_complete() {
    let list = fs::read_to_string(root().join("packaging/README.md")).unwrap();
    let workspace = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    let version = workspace.lines().find_map(|line| line.strip_prefix("version = ")).unwrap();
    let packages = packages();
    assert!(packages.len() > UNPUBLISHED.len());
    for package in &packages {
        let package = package.as_str();
        let text = fs::read_to_string(root().join(package).join("Cargo.toml")).unwrap();
        let published = entry(&text, "publish") != Some("false");
        assert_eq!(published, !UNPUBLISHED.contains(&package), "{package}/Cargo.toml: publish");
        if !published {
            continue;
        }
        let name = if package == "cli" { "exitlens".into() } else { format!("exitlens-{package}") };
        assert_eq!(entry(&text, "name"), Some(name.as_str()), "{package}/Cargo.toml");
        assert_eq!(entry(&text, "documentation"), Some(format!("https://docs.rs/{name}").as_str()));
        for key in ["description", "license.workspace", "readme.workspace", "version.workspace"] {
            let value = entry(&text, key).filter(|value| !value.is_empty());
            assert!(value.is_some(), "{package}/Cargo.toml: {key} is missing");
        }
        // The registry takes at most five of each.
        for key in ["keywords", "categories"] {
            let count = entry(&text, key).map_or(0, |value| value.matches('"').count() / 2);
            assert!((1..=5).contains(&count), "{package}/Cargo.toml: {key}");
        }
        for licence in ["LICENSE-MIT", "LICENSE-APACHE"] {
            assert!(root().join(package).join(licence).exists(), "{package}/{licence} is missing");
        }
        assert!(list.contains(&format!("| {name} |")), "packaging/README.md does not list {name}");
        // A file of another folder would be missing in the package. Tests are left out of it.
        let build = text.split("\n[[test]]").next().unwrap();
        assert!(!build.contains("\"../"), "{package}/Cargo.toml: a file is outside of the package");
        if package != "cli" {
            assert!(text.contains(&format!("[lib]\nname = \"{package}\"")), "{package}/Cargo.toml: [lib]");
            let dependency =
                format!("{package} = {{ package = \"{name}\", version = {version}, path = \"{package}\" }}");
            assert!(workspace.contains(&dependency), "Cargo.toml: {dependency} is missing");
        }
    }
}
