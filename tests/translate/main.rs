//! From the columns of a row to the bytes on the wire, tried from the outside.

mod addresses;
mod blocks;
mod bodies;
mod boundaries;
mod charsets;
mod corpus;
mod damage;
mod encoded_words;
mod fitness;
mod lists;
mod mails;
mod mutations;
mod oracle;
mod people;
mod properties;
mod rows;
mod silence;
mod structured;
mod transfer;
