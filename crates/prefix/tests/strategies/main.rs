//! Every strategy against the vectors that Python's tests read too, and against a slow model.

mod golden;
mod model;
