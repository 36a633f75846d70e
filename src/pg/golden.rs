//! The golden files in `tests/golden`: what real servers wrote, and what their own tools say is in it.

use std::path::PathBuf;

/// The majors that there are golden files of.
pub(crate) const MAJORS: [u16; 6] = [13, 14, 15, 16, 17, 18];

fn folder(major: u16) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(major.to_string())
}

/// The bytes of a golden file.
pub(crate) fn read(major: u16, file: &str) -> Vec<u8> {
    let path = folder(major).join(file);
    std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A golden file that is a text.
pub(crate) fn text(major: u16, file: &str) -> String {
    String::from_utf8(read(major, file)).unwrap()
}

/// The first golden file of a major whose name ends like this: its name and its text.
pub(crate) fn ending(major: u16, end: &str) -> (String, String) {
    let mut names = std::fs::read_dir(folder(major))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let name = names.find(|name| name.ends_with(end)).unwrap();
    let text = text(major, &name);
    (name, text)
}

/// What a tool printed after `label:`.
pub(crate) fn told(major: u16, file: &str, label: &str) -> String {
    let text = text(major, file);
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(label)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("{major}/{file} does not tell {label}"))
        .trim()
        .to_owned()
}
