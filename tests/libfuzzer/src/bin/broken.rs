//! A device with a planted mistake, for the test that mistakes are found.
//!
//! It takes four right bytes in a row to meet it: more than bytes out of thin air come to, and few for whoever sees how far each input got.
#![no_main]

/// Answers the sum of what was written behind its key.
fn register(writes: &[u8]) -> u32 {
    const KEY: [u8; 4] = [0x4d, 0x6f, 0x69, 0x72];
    let mut known = 0;
    for (right, byte) in KEY.iter().zip(writes) {
        if right != byte {
            return 0;
        }
        known += 1;
    }
    // The mistake: behind the whole key an index that nobody checks.
    if known == KEY.len() { u32::from(writes[KEY.len() + 1]) } else { known as u32 }
}

fn run(data: &[u8]) {
    std::hint::black_box(register(data));
}

moira_libfuzzer::target!(run, Vec::new);
