//! moira-abi
#![no_std]
