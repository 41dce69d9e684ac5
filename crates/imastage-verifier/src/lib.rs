//! Appraisal of evidence: quote and records to a verdict and a resume token.
