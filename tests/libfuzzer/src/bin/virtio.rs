//! One virtio device behind a driver whose queues hold anything.
#![no_main]
moira_libfuzzer::target!(vmm_fuzz::virtio::run, vmm_fuzz::virtio::seeds);
