//! From the columns of a row to the bytes on the wire, tried from the outside.

mod bodies;
mod corpus;
mod damage;
mod fitness;
mod mutations;
mod people;
mod properties;
mod rows;
