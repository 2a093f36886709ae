//! Stored bytes to text: base64 and charsets.
