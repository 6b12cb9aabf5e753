//! Tests of the catalog on real files.
