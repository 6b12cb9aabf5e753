//! Configuration: any text is read or refused, and what was read means the same when it is written and read again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use thermocline::Config;

fuzz_target!(|text: &str| {
    match Config::from_toml(text) {
        Ok(config) => {
            let _ = config.validate();
            let written = config.to_toml().expect("paths from TOML are UTF-8");
            let again = Config::from_toml(&written).expect("what was written can be read");
            assert_eq!(again, config);
        }
        Err(e) => assert!(!e.to_string().is_empty()),
    }
});
