//! Room for a state: whole lines of the caches, in huge pages where the system gives them.
//!
//! Small pages cost a fifth of the rate of a copy. They must be asked for before the memory is
//! touched: what was zeroed before stays in small ones.

use std::ops::{Deref, DerefMut};

use memmap2::{Advice, MmapMut};

/// Bytes of a huge page, which the values begin with.
const HUGE: usize = 2 << 20;

/// f32 values, zero at first, that begin with a page.
pub struct Floats {
    /// What has to go before the memory does.
    kept: Option<Box<dyn Send + Sync>>,
    map: MmapMut,
    start: usize,
    length: usize,
}

impl Floats {
    /// Room for `length` values. It takes no memory until it is written.
    ///
    /// # Errors
    ///
    /// The operating system's.
    pub fn new(length: usize) -> std::io::Result<Self> {
        let map = MmapMut::map_anon(length * size_of::<f32>() + HUGE)?;
        #[cfg(target_os = "linux")]
        // A system without huge pages is slower, no more.
        let _ = map.advise(Advice::HugePage);
        let start = map.as_ptr().align_offset(HUGE);
        Ok(Self { kept: None, map, start, length })
    }

    /// Drops `held` before the memory goes, such as a lock on its pages.
    pub fn keep(&mut self, held: Box<dyn Send + Sync>) {
        self.kept = Some(held);
    }
}

impl Deref for Floats {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        let bytes = &self.map[self.start..][..4 * self.length];
        // SAFETY: of that length, begins with a page; any four bytes are an f32.
        unsafe { std::slice::from_raw_parts(bytes.as_ptr().cast(), self.length) }
    }
}

impl DerefMut for Floats {
    fn deref_mut(&mut self) -> &mut [f32] {
        let bytes = &mut self.map[self.start..][..4 * self.length];
        // SAFETY: as above, borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(bytes.as_mut_ptr().cast(), self.length) }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn there_is_room_for_each_length_and_it_is_zero() {
        for length in [0, 1, 1000, 600_000] {
            let mut floats = super::Floats::new(length).expect("there is memory");
            assert_eq!(floats.len(), length);
            assert!(floats.as_ptr().addr().is_multiple_of(super::HUGE));
            assert!(floats.iter().all(|value| value.to_bits() == 0));
            floats.fill(1.0);
        }
    }
}
