//! How statics are declared that the loader sets before the programs are loaded; of both objects.

macro_rules! settings {
    ($($(#[$doc:meta])* $name:ident: $type:ty = $initial:expr, $getter:ident;)*) => {$(
        $(#[$doc])*
        #[unsafe(no_mangle)]
        static $name: $type = $initial;

        #[inline(always)]
        pub fn $getter() -> $type {
            // SAFETY: the static is valid; the loader has replaced its value, hence the volatile read.
            unsafe { core::ptr::read_volatile(&raw const $name) }
        }
    )*};
}
pub(crate) use settings;
