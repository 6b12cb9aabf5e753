//! Numbers of what happened.

/// Makes a struct of numbers, all 0 at first, that count what happened in a test; `+=` adds those of another, which
/// another thread has counted.
#[macro_export]
macro_rules! counts {
    ($(#[$of:meta])* $vis:vis struct $name:ident { $($(#[$doc:meta])* $field:ident,)* }) => {
        $(#[$of])*
        #[derive(Debug, Default, Clone, Copy)]
        $vis struct $name {
            $($(#[$doc])* pub $field: u64,)*
        }

        impl std::ops::AddAssign for $name {
            fn add_assign(&mut self, other: $name) {
                $(self.$field += other.$field;)*
            }
        }
    };
}
