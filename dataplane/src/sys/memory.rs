//! What a program can ask of the memory beyond its bytes: to be near in time, and to come in large pages.
#![allow(unsafe_code)]

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
pub fn prefer_huge_pages<T>(memory: &[T]) {
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
