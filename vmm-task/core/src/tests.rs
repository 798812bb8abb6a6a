//! Whole-machine tests with a processor of our own.
