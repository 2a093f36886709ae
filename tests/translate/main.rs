//! From the columns of a row to the bytes on the wire, tried from the outside.

mod blocks;
mod bodies;
mod corpus;
mod damage;
mod fitness;
mod lists;
mod mutations;
mod people;
mod properties;
mod rows;
