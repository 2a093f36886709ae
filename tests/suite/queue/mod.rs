//! What a queue promises, said once and held against each database.

mod accounts;
mod claims;
mod conflicts;
mod contents;
mod errors;
mod links;
mod locks;
mod mysql;
mod operators;
mod peculiar;
mod place;
mod pool;
mod pooler;
mod producers;
mod reads;
mod recovery;
mod settling;
mod setup;
mod triggers;
mod undeleted;

/// Makes of each function a test on every database, in modules that are named after them. `pgbouncer` is PostgreSQL by
/// way of a PgBouncer that pools transactions.
macro_rules! on_each_database {
    ($(async fn $name:ident($place:ident: Place) $body:block)+) => {
        $(async fn $name($place: Place) $body)+
        mod mariadb {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::queue::place::Place::mariadb().await).await;
            })+
        }
        mod mysql {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::queue::place::Place::mysql().await).await;
            })+
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::queue::place::Place::postgres().await).await;
            })+
        }
        mod pgbouncer {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::queue::place::Place::pgbouncer().await).await;
            })+
        }
        mod sqlite {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::queue::place::Place::sqlite().await).await;
            })+
        }
    };
}

/// The same for what concerns servers only.
macro_rules! on_each_server {
    ($(async fn $name:ident($place:ident: Place) $body:block)+) => {
        $(async fn $name($place: Place) $body)+
        mod mariadb {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::queue::place::Place::mariadb().await).await;
            })+
        }
        mod mysql {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::queue::place::Place::mysql().await).await;
            })+
        }
        mod postgres {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::queue::place::Place::postgres().await).await;
            })+
        }
    };
}

/// The same for what MariaDB and MySQL alone have.
macro_rules! on_each_mysql {
    ($(async fn $name:ident($place:ident: Place) $body:block)+) => {
        $(async fn $name($place: Place) $body)+
        mod mariadb {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::queue::place::Place::mariadb().await).await;
            })+
        }
        mod mysql {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $name() {
                super::$name(crate::queue::place::Place::mysql().await).await;
            })+
        }
    };
}
use {on_each_database, on_each_mysql, on_each_server};
