//! Map entries that other CPUs read and write meanwhile. What never changes while an entry lives is copied out;
//! what does is an aligned 32-bit word, read and written whole, and exchanged by compare-and-swap.

use core::marker::PhantomData;
use core::ptr::NonNull;

use crate::abi::{Delivery, Flow, FlowKey, Fragment, Hop, Life, Reply, Turn, Turned};
use crate::family::Address;
use crate::wire::Be16;

/// A 32-bit word of a live entry.
#[derive(Clone, Copy)]
pub struct Word<'a>(NonNull<u32>, PhantomData<&'a u32>);

impl Word<'_> {
    /// Wraps a word in a map.
    ///
    /// # Safety
    /// As [`Live::new`].
    #[inline(always)]
    pub const unsafe fn new(pointer: NonNull<u32>) -> Self {
        Self(pointer, PhantomData)
    }

    /// The word now.
    #[inline(always)]
    pub fn get(self) -> u32 {
        // SAFETY: the pointer comes from a live entry, aligned to four octets by the ABI.
        unsafe { self.0.as_ptr().read_volatile() }
    }

    /// Writes the word.
    #[inline(always)]
    pub fn set(self, to: u32) {
        // SAFETY: as in `get`; writers of one word agree on what concurrent stores mean (last one wins).
        unsafe { self.0.as_ptr().write_volatile(to) }
    }

    /// Writes the word unless it holds the value already: a clean cache line stays clean.
    #[inline(always)]
    pub fn refresh(self, to: u32) {
        if self.get() != to {
            self.set(to);
        }
    }

    /// Replaces `old` by `new` in one step; `true` if it was `old`.
    #[inline(always)]
    #[must_use]
    pub fn swap(self, old: u32, new: u32) -> bool {
        // SAFETY: aligned and live, as in `get`.
        unsafe { atomic::compare_exchange(self.0.as_ptr(), old, new) == old }
    }

    /// Sets `bits` in one step.
    #[inline(always)]
    pub fn insert(self, bits: u32) {
        // SAFETY: aligned and live, as in `get`.
        unsafe { atomic::or(self.0.as_ptr(), bits) }
    }
}

/// A value inside a map, as the helper's pointer gives it.
pub struct Live<'a, T>(NonNull<T>, PhantomData<&'a T>);

impl<T> Clone for Live<'_, T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Live<'_, T> {}

impl<T> Live<'_, T> {
    /// Wraps a map value.
    ///
    /// # Safety
    /// `pointer` is a map value's address, aligned to four octets, that stays allocated for `'a` (in BPF: until the
    /// program returns); everybody else writes it through `Live` or as a whole from user space.
    #[inline(always)]
    pub const unsafe fn new(pointer: NonNull<T>) -> Self {
        Self(pointer, PhantomData)
    }
}

macro_rules! entry {
    ($type:ident { $($copied:ident: $of:ty),* ; $($word:ident),* }) => {
        impl<'a, A: Address> Live<'a, $type<A>> {
            $(
                /// The field of this name; set when the entry was made.
                #[inline(always)]
                pub fn $copied(self) -> $of {
                    // SAFETY: live and aligned by `Live::new`; the field is not written while the entry lives.
                    unsafe { (&raw const (*self.0.as_ptr()).$copied).read() }
                }
            )*
            $(
                /// The word of this name; changes under our hands.
                #[inline(always)]
                pub fn $word(self) -> Word<'a> {
                    // SAFETY: a field's address in a live entry is not null.
                    Word(unsafe { NonNull::new_unchecked(&raw mut (*self.0.as_ptr()).$word) }, PhantomData)
                }
            )*

            /// Whether a packet may use the entry; takes back the mark of a pass that found it idle.
            #[inline(always)]
            #[must_use]
            pub fn revive(self) -> bool {
                match self.life().get() {
                    Life::LIVE => true,
                    Life::MARKED => self.life().swap(Life::MARKED, Life::LIVE) || self.life().get() == Life::LIVE,
                    _ => false,
                }
            }

            /// Claims the entry for removal; `true` for exactly one caller.
            #[inline(always)]
            #[must_use]
            pub fn claim(self) -> bool {
                self.life().swap(Life::LIVE, Life::DEAD) || self.life().swap(Life::MARKED, Life::DEAD)
            }
        }
    };
}

entry! { Flow { backend: u32, service: u32, peer: A, peer_port: u16, target_port: u16, delivery: Delivery; life, flags, seen, next, acknowledged } }
entry! { Reply { flow: FlowKey<A>, delivery: Delivery, address_sum: u16, via: A; life, flags, seen, sequence } }

impl<A: Address> Live<'_, Flow<A>> {
    /// The whole entry as it is now.
    #[inline(always)]
    pub fn copy(self) -> Flow<A> {
        // SAFETY: live and aligned by `Live::new`; each word is copied whole.
        unsafe { self.0.as_ptr().read() }
    }
}

impl<A: Address> Live<'_, Flow<A>> {
    /// How often the backend had turned when the last request passed; changes under our hands.
    #[inline(always)]
    pub fn turn(self) -> u8 {
        // SAFETY: one octet of a live entry.
        unsafe { (&raw const (*self.0.as_ptr()).turn).read_volatile() }
    }

    /// A request has passed.
    #[inline(always)]
    pub fn set_turn(self, to: u8) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0.as_ptr()).turn).write_volatile(to) }
    }
}

impl<'a, A: Address> Live<'a, Reply<A>> {
    /// The entry itself, to be copied by whoever takes it; words may be of different moments.
    #[inline(always)]
    pub fn shared(self) -> &'a Reply<A> {
        // SAFETY: live and aligned by `Live::new`; who copies it reads each word whole.
        unsafe { self.0.as_ref() }
    }

    /// The whole entry as it is now.
    #[inline(always)]
    pub fn copy(self) -> Reply<A> {
        // SAFETY: live and aligned by `Live::new`; each word is copied whole.
        unsafe { self.0.as_ptr().read() }
    }

    /// The next hop to the client.
    #[inline(always)]
    pub fn hop(self) -> Slot {
        // SAFETY: a field's address in a live entry is not null.
        Slot(unsafe { NonNull::new_unchecked(&raw mut (*self.0.as_ptr()).hop) })
    }
}

impl<A: Address> Live<'_, Fragment<A>> {
    /// The whole entry as it is now.
    #[inline(always)]
    pub fn copy(self) -> Fragment<A> {
        // SAFETY: live and aligned by `Live::new`; each word is copied whole.
        unsafe { self.0.as_ptr().read() }
    }

    /// When it was made, jiffies.
    #[inline(always)]
    pub fn seen(self) -> u32 {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0.as_ptr()).seen).read_volatile() }
    }

    /// [`crate::abi::FragmentFlags`].
    #[inline(always)]
    pub fn flags(self) -> u32 {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0.as_ptr()).flags).read_volatile() }
    }

    /// Where the fragments go.
    #[inline(always)]
    pub fn destination(self) -> A {
        // SAFETY: as above.
        unsafe { (&raw const (*self.0.as_ptr()).destination).read() }
    }
}

impl<'a> Live<'a, Turn> {
    /// [`Turned`] as a number; changes under our hands.
    #[inline(always)]
    pub fn word(self) -> Word<'a> {
        // SAFETY: a field's address in a live entry is not null.
        Word(unsafe { NonNull::new_unchecked(&raw mut (*self.0.as_ptr()).word) }, PhantomData)
    }

    /// What the word says now.
    #[inline(always)]
    pub fn turned(self) -> Turned {
        Turned(self.word().get())
    }

    /// When the present endpoint last answered.
    #[inline(always)]
    pub fn replied(self) -> u64 {
        // SAFETY: live and aligned to eight octets: values of maps are.
        unsafe { (&raw const (*self.0.as_ptr()).replied).read_volatile() }
    }

    /// The present endpoint has answered; of two CPUs at once either is right.
    #[inline(always)]
    pub fn set_replied(self, at: u64) {
        // SAFETY: as above.
        unsafe { (&raw mut (*self.0.as_ptr()).replied).write_volatile(at) }
    }
}

/// A place that caches a [`Hop`]. Packets of one direction of a flow may cross on two CPUs: the stamp is cleared first
/// and written last, so that a half-written hop is not believed.
#[derive(Clone, Copy)]
pub struct Slot(NonNull<Hop>);

impl Slot {
    /// Wraps a hop in a map.
    ///
    /// # Safety
    /// As [`Live::new`].
    #[inline(always)]
    pub const unsafe fn new(pointer: NonNull<Hop>) -> Self {
        Self(pointer)
    }

    /// What the hop was filled under.
    #[inline(always)]
    pub fn stamp(self) -> u32 {
        // SAFETY: live and aligned by `Slot::new`.
        unsafe { (&raw const (*self.0.as_ptr()).stamp).read_volatile() }
    }

    /// When the hop was filled, jiffies.
    #[inline(always)]
    pub fn filled(self) -> u32 {
        // SAFETY: live and aligned by `Slot::new`.
        unsafe { (&raw const (*self.0.as_ptr()).filled).read_volatile() }
    }

    /// Device it leaves by.
    #[inline(always)]
    pub fn ifindex(self) -> u32 {
        // SAFETY: live and aligned by `Slot::new`.
        unsafe { (&raw const (*self.0.as_ptr()).ifindex).read_volatile() }
    }

    /// Octets that a packet may have, from the IP header on.
    #[inline(always)]
    pub fn mtu(self) -> u32 {
        // SAFETY: live and aligned by `Slot::new`.
        unsafe { (&raw const (*self.0.as_ptr()).mtu).read_volatile() }
    }

    /// The next hop's MAC address.
    #[inline(always)]
    pub fn destination(self) -> [Be16; 3] {
        // SAFETY: six octets at an even offset of an aligned entry.
        words(unsafe { &raw const (*self.0.as_ptr()).destination })
    }

    /// The device's MAC address.
    #[inline(always)]
    pub fn source(self) -> [Be16; 3] {
        // SAFETY: as above.
        words(unsafe { &raw const (*self.0.as_ptr()).source })
    }

    /// Stores a hop.
    #[inline(always)]
    pub fn fill(self, from: Hop) {
        let hop = self.0.as_ptr();
        // SAFETY: live and aligned by `Slot::new`; volatile keeps the order.
        unsafe {
            (&raw mut (*hop).stamp).write_volatile(0);
            (&raw mut (*hop).filled).write_volatile(from.filled);
            (&raw mut (*hop).ifindex).write_volatile(from.ifindex);
            (&raw mut (*hop).source).write(from.source);
            (&raw mut (*hop).destination).write(from.destination);
            (&raw mut (*hop).mtu).write_volatile(from.mtu);
            (&raw mut (*hop).stamp).write_volatile(from.stamp);
        }
    }
}

/// A MAC address by words, each read on its own: LLVM would spill octets, or call `memmove`, a loop over octets in BPF.
#[inline(always)]
fn words(octets: *const [u8; 6]) -> [Be16; 3] {
    let words = octets.cast::<Be16>();
    // SAFETY: the callers give six live octets at an even address.
    unsafe { [words.read_volatile(), words.add(1).read_volatile(), words.add(2).read_volatile()] }
}

#[cfg(not(target_arch = "bpf"))]
mod atomic {
    use core::sync::atomic::{AtomicU32, Ordering};

    pub(super) unsafe fn compare_exchange(word: *mut u32, old: u32, new: u32) -> u32 {
        // SAFETY: the caller gives an aligned, live word that is written through volatile stores or here.
        let word = unsafe { AtomicU32::from_ptr(word) };
        match word.compare_exchange(old, new, Ordering::SeqCst, Ordering::SeqCst) {
            Ok(found) | Err(found) => found,
        }
    }

    pub(super) unsafe fn or(word: *mut u32, bits: u32) {
        // SAFETY: as above.
        unsafe { AtomicU32::from_ptr(word) }.fetch_or(bits, Ordering::SeqCst);
    }
}

/// rustc says that BPF has no compare-and-swap; instruction set v3 has (kernel Documentation/bpf/standardization).
#[cfg(target_arch = "bpf")]
mod atomic {
    use core::arch::asm;

    #[inline(always)]
    pub(super) unsafe fn compare_exchange(word: *mut u32, old: u32, new: u32) -> u32 {
        let found: u32;
        // SAFETY: the caller gives an aligned word inside a map value.
        unsafe {
            asm!(
                "w0 = cmpxchg32_32({word} + 0, w0, {new})",
                word = in(reg) word,
                new = in(wreg) new,
                inout("w0") old => found,
            );
        }
        found
    }

    #[inline(always)]
    pub(super) unsafe fn or(word: *mut u32, bits: u32) {
        // SAFETY: the caller gives an aligned word inside a map value.
        unsafe {
            asm!("lock *(u32 *)({word} + 0) |= {bits}", word = in(reg) word, bits = in(wreg) bits);
        }
    }
}
