//! A short run of each target, the same bytes every time. `FUZZ_ROUNDS` makes it longer, `FUZZ_SEED` another one.

use vmm_fuzz::{Random, decoder, devices, exits, loaders, virtio};

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(otherwise)
}

fn rounds(usual: u64, mut once: impl FnMut(&mut Random)) {
    let mut random = Random::new(number("FUZZ_SEED", 1));
    for _ in 0..number("FUZZ_ROUNDS", usual) {
        once(&mut random);
    }
}

#[test]
fn devices_bear_any_access() {
    rounds(2_000, |random| {
        let length = random.below(3000);
        devices::run(&random.bytes(length));
    });
}

#[test]
fn the_decoder_bears_any_bytes() {
    rounds(3_000, |random| {
        let length = 160 + random.below(200);
        let mut bytes = random.bytes(length);
        // Bytes that begin instructions, and entries of page tables that lead back into the memory.
        for at in (150..length).filter(|at| at % 3 == 0) {
            bytes[at] = [0x0f, 0x66, 0xf3, 0x48, 0x8b, 0x89, 0xa2, 0x07, 0xe7][random.below(9)];
        }
        decoder::run(&bytes);
    });
}

#[test]
fn loaders_bear_any_image() {
    let valid = [loaders::bz_image(), loaders::elf_image(), loaders::multiboot_image(), loaders::multiboot2_image()];
    rounds(1_500, |random| {
        let mut image = vec![random.word() as u8];
        image.extend_from_slice(&valid[random.below(valid.len())]);
        random.mutate(&mut image);
        loaders::run(&image);
    });
}

/// Seeds, and what becomes of them.
fn mutated(usual: u64, run: fn(&[u8]), seeds: &[Vec<u8>]) {
    seeds.iter().for_each(|seed| run(seed));
    rounds(usual, |random| {
        let mut bytes = seeds[random.below(seeds.len())].clone();
        let more = random.below(200);
        bytes.extend(random.bytes(more));
        random.mutate(&mut bytes);
        run(&bytes);
    });
}

#[test]
fn virtio_devices_bear_any_queue() {
    mutated(2_000, virtio::run, &virtio::seeds());
}

#[test]
fn the_monitor_bears_any_exit() {
    mutated(300, exits::run, &exits::seeds());
}

#[test]
fn the_monitor_bears_any_debugger() {
    mutated(300, exits::debug, &exits::debug_seeds());
}
