//! JSON bodies of the REST API, in the spelling of E2B.
