//! Harness for the tests that need root: builds the torture worker, runs cadscope, reads its answers.
