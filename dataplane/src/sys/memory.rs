//! What a program can ask of memory besides its bytes: prefetching into the cache, and large pages.
#![allow(unsafe_code)]

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::Deref;
use std::ptr::NonNull;
use zerocopy::FromZeros;

/// Zeros that the operating system provides when they are first touched, in huge pages where there are any.
///
/// A `Box` would do for types of small alignment: the allocator clears memory of a larger one by hand, and so touches
/// all of it.
#[derive(Debug)]
pub struct Zeroed<T> {
    /// As the allocator gave it.
    memory: NonNull<u8>,
    layout: Layout,
    first: NonNull<T>,
    count: usize,
}

/// Of a huge page: a table larger than one begins with one.
const HUGE: usize = 2 << 20;
/// Up to this alignment the allocator asks the operating system for zeros.
const SMALL_ALIGNMENT: usize = 8;

impl<T: FromZeros> Zeroed<T> {
    /// `count` values of zeros.
    ///
    /// # Panics
    /// When the system does not give the memory.
    pub fn new(count: usize) -> Self {
        Self::try_new(count).unwrap_or_else(|| panic!("there is no memory for {count} entries"))
    }

    /// `count` values of zeros; `None` when the system does not give the memory.
    pub fn try_new(count: usize) -> Option<Self> {
        const { assert!(!std::mem::needs_drop::<T>()) };
        let size = size_of::<T>().checked_mul(count)?;
        let alignment = if size > HUGE { HUGE } else { align_of::<T>() };
        let room = size.max(1).checked_add(alignment)?;
        let layout = Layout::from_size_align(room, SMALL_ALIGNMENT).ok()?;
        // SAFETY: the layout's size is not zero.
        let memory = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        let skipped = memory.as_ptr().align_offset(alignment.max(align_of::<T>()));
        // SAFETY: at most `alignment` bytes are skipped, and the layout has so many more than the values take.
        let first = unsafe { memory.add(skipped) }.cast();
        let zeroed = Self {
            memory,
            layout,
            first,
            count,
        };
        prefer_huge_pages(&zeroed);
        Some(zeroed)
    }
}

impl<T> Deref for Zeroed<T> {
    type Target = [T];

    #[inline]
    fn deref(&self) -> &[T] {
        // SAFETY: `count` values from `first` lie in the memory and are aligned (see `new`); all zeros are a valid T
        // (`FromZeros`); the memory lives as long as `self`, and nobody has it but by this reference.
        unsafe { std::slice::from_raw_parts(self.first.as_ptr(), self.count) }
    }
}

impl<T> Drop for Zeroed<T> {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout. `new` demands that values need no drop.
        unsafe { dealloc(self.memory.as_ptr(), self.layout) }
    }
}

// SAFETY: it owns its values as a Box does.
unsafe impl<T: Send> Send for Zeroed<T> {}
// SAFETY: a shared reference gives shared references to the values only.
unsafe impl<T: Sync> Sync for Zeroed<T> {}

/// Starts to bring the cache line at `target` near.
#[inline]
pub fn prefetch<T>(target: &T) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch has no effect but on caches; any address is allowed.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(target).cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = target;
}

/// Asks for huge pages behind `memory`, which must not have been touched yet. Without effect where there are none.
fn prefer_huge_pages<T>(memory: &[T]) {
    #[cfg(feature = "tun")]
    {
        const PAGE: usize = 4096;
        let start = memory.as_ptr().addr();
        let skipped = start.next_multiple_of(PAGE) - start;
        let length = size_of_val(memory).saturating_sub(skipped) / PAGE * PAGE;
        if length > 0 {
            let first = memory.as_ptr().cast::<u8>().wrapping_add(skipped);
            // SAFETY: the pages lie inside `memory`, and the advice changes nothing of what can be read there.
            let _ = unsafe {
                rustix::mm::madvise(
                    first.cast_mut().cast(),
                    length,
                    rustix::mm::Advice::LinuxHugepage,
                )
            };
        }
    }
    #[cfg(not(feature = "tun"))]
    let _ = memory;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Small, larger than a huge page, and none.
    #[test]
    fn values_are_zero_and_aligned() {
        #[derive(FromZeros)]
        #[repr(C, align(64))]
        struct Line([u64; 8]);
        for count in [0, 1, 100, 100_000] {
            let zeroed: Zeroed<Line> = Zeroed::new(count);
            assert_eq!(zeroed.len(), count);
            assert_eq!(zeroed.as_ptr().align_offset(64), 0);
            assert!(zeroed.iter().all(|line| line.0 == [0; 8]));
        }
    }

    /// More than there are addresses for, of a processor and of the language.
    #[test]
    fn what_the_system_does_not_give_is_none() {
        for count in [1 << 57, 1 << 60, usize::MAX] {
            assert!(Zeroed::<u64>::try_new(count).is_none());
        }
    }
}
