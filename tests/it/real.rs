//! What the gateway forwards between programs that we did not write: servers that are apps behind
//! it, clients and a load balancer before it. What each has to show is its own module's.

mod clients;
mod haproxy;
mod nginx;
mod node;
mod python;
mod resolver;
