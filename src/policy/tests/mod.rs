//! Tests of the policy with a fake clock: a bench that plays the controller, tables of rules, and random runs.

mod bench;
mod random;
mod rules;
mod startup;
