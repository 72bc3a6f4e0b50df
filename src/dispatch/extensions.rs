//! Values of the application that travel with a request.

use std::any::Any;

use crate::text::drop_caught;

/// Values, at most one of each type. They are dropped with the request on any thread, so their panics are caught.
#[derive(Default)]
pub(super) struct Extensions(Vec<Box<dyn Any + Send + Sync>>);

impl Extensions {
    pub(super) fn get<T: Any>(&self) -> Option<&T> {
        self.0.iter().find_map(|value| value.downcast_ref())
    }

    /// Sets a value in place of one of the same type.
    pub(super) fn set<T: Any + Send + Sync>(&mut self, value: T) {
        match self.0.iter_mut().find(|known| known.is::<T>()) {
            Some(known) => *known = Box::new(value),
            None => self.0.push(Box::new(value)),
        }
    }

    /// Drops all values, each for itself. Returns the messages of those that panicked.
    pub(super) fn clear(&mut self) -> Vec<String> {
        self.0.drain(..).filter_map(|value| drop_caught(value).err()).collect()
    }
}

impl Drop for Extensions {
    fn drop(&mut self) {
        for message in self.clear() {
            log::error!("an extension of a request panicked when it was dropped: {message}");
        }
    }
}
