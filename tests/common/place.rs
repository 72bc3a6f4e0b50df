//! The program in a place of its own, where it may be replaced while it runs.

use super::folder::Folder;
use super::{Allout, Serving};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

/// The place, which goes with the test.
pub struct Place(pub Folder);

impl Place {
    /// A place with a copy of the program.
    pub fn new(name: &str) -> Place {
        let place = Place(Folder::new(name));
        place.put_copy(env!("CARGO_BIN_EXE_allout"));
        place
    }

    /// The path of the program.
    pub fn binary(&self) -> PathBuf {
        self.0.join("allout")
    }

    /// Replaces the binary as an installer does: the new one gets its name at once.
    pub fn put(&self, make: impl FnOnce(&Path)) {
        let next = self.0.join("next");
        make(&next);
        fs::rename(&next, self.binary()).expect("renaming");
    }

    /// Replaces it by a copy of this file.
    pub fn put_copy(&self, of: &str) {
        self.put(|path| assert!(fs::copy(of, path).expect("a copy") > 0));
    }

    /// Replaces it by a file that may be executed and has this content.
    pub fn put_executable(&self, content: impl AsRef<[u8]>) {
        self.put(|path| {
            fs::write(path, content).expect("writing");
            fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("permissions");
        });
    }

    /// Starts the binary that is there.
    pub fn start(&self, args: &[&str]) -> Serving {
        Allout::of(&self.binary()).args(args.iter().copied()).start()
    }
}
