//! A folder for the files of one test, removed at its end.

#![allow(dead_code, unreachable_pub, reason = "shared by several test programs, each of which uses its own part")]
#![allow(clippy::expect_used, reason = "a test says what it expects by panicking")]

use std::fs;
use std::path::{Path, PathBuf};

/// The folder.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    /// An empty folder, whose name no other folder of this test program has.
    pub fn new(name: &str) -> Folder {
        let path = std::env::temp_dir().join(format!("allout-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path); // of a run that was killed
        fs::create_dir_all(&path).expect("a folder can be made");
        Folder(path)
    }

    /// Writes a file in it.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.join(name);
        fs::write(&path, content).expect("a file of a test can be written");
        path
    }
}

impl std::ops::Deref for Folder {
    type Target = Path;
    fn deref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}
