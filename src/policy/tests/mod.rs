//! Tests of the policy with a fake clock: a bench that plays the controller, tables of rules, and random runs.

mod audit;
mod bench;
mod fairness;
mod random;
mod rules;
mod shortage;
mod startup;
mod throttle;
