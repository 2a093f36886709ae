"""The three databases: a producers' table filled with mails, and what is left in it."""

import base64
import os
import sqlite3
import subprocess
from urllib.parse import urlsplit

NAME = "throughput"
OURS = ("mailqueue_delivery", "mailqueue_recipient", "mailqueue_dispatcher")


def base64_of(text):
    return base64.b64encode(text.encode()).decode()


# A newsletter of 3 kB, as its producer writes it; each goes to an address of its own.
BODY = ("Liebe Freundinnen und Freunde, am Samstag treffen wir uns um 15 Uhr im Gemeindezentrum.\n" * 40)[:3000]
SUBJECT = base64_of("=?UTF-8?B?TmV1ZXMgYXVzIGRlbSBKw6RubmVy?=")
HEADERS = base64_of(
    "From: Newsletter <newsletter@partei.example.at>\r\n"
    "MIME-Version: 1.0\r\n"
    "Content-type: text/plain; charset=UTF-8\r\n"
)


def insert(address, numbers):
    """`address` is SQL for the base64 of a recipient, `numbers` for the table that it is made from."""
    return (
        "INSERT INTO mail_queue (mto, msubject, mbody, mheaders) "
        f"SELECT {address}, '{SUBJECT}', '{base64_of(BODY)}', '{HEADERS}' FROM {numbers}"
    )


class Server:
    """A database that its own client talks to."""

    def __init__(self, variable):
        self.client = os.environ[f"{variable}_CLIENT"]
        self.server = urlsplit(os.environ[variable])
        self.url = self.server._replace(path=f"/{NAME}").geturl()
        self.recreate()

    def run(self, sql, database=NAME):
        done = subprocess.run(self.command(database, sql), env=self.environment(), capture_output=True, text=True)
        if done.returncode != 0:
            raise SystemExit(f"{self.name}: {done.stderr.strip()}\nin: {sql[:200]}")
        return done.stdout.strip()

    def environment(self):
        return os.environ | {"MYSQL_PWD": self.server.password, "PGPASSWORD": self.server.password}

    def left(self):
        """Rows of the producers' table, and records of ours."""
        count = "SELECT (SELECT COUNT(*) FROM mail_queue) + (SELECT COUNT(*) FROM mailqueue_delivery)"
        return int(self.run(count))


class MariaDb(Server):
    name = "mariadb"

    def __init__(self):
        super().__init__("MAILQUEUE_TEST_MARIADB")
        # With the default of 128 MiB it is the disk that is measured, where a table is long.
        self.run("SET GLOBAL innodb_buffer_pool_size = 1073741824")

    def command(self, database, sql):
        at = [f"--host={self.server.hostname}", f"--port={self.server.port}", f"--user={self.server.username}"]
        return [self.client, *at, "--skip-column-names", "--batch", f"--execute={sql}", database]

    def recreate(self):
        self.run(f"DROP DATABASE IF EXISTS {NAME}; CREATE DATABASE {NAME}", "mysql")

    def fill(self, rows):
        self.run(insert("TO_BASE64(CONCAT('n', seq, '@example.org'))", f"seq_1_to_{rows}"))

    def empty(self):
        self.run("TRUNCATE mail_queue; " + "; ".join(f"TRUNCATE {table}" for table in OURS))

    def describe(self):
        return "MariaDB " + self.run("SELECT CONCAT(VERSION(), ', innodb_flush_log_at_trx_commit=', "
                                     "@@innodb_flush_log_at_trx_commit, ', innodb_buffer_pool_size=', "
                                     "@@innodb_buffer_pool_size DIV 1048576, ' MiB')")


class Postgres(Server):
    name = "postgres"

    def __init__(self):
        super().__init__("MAILQUEUE_TEST_POSTGRES")

    def command(self, database, sql):
        at = [f"--host={self.server.hostname}", f"--port={self.server.port}", f"--username={self.server.username}"]
        return [self.client, *at, "--set=ON_ERROR_STOP=1", "--quiet", "--no-align", "--tuples-only",
                *(f"--command={part}" for part in sql.split("; ")), database]

    def recreate(self):
        self.run(f"DROP DATABASE IF EXISTS {NAME}; CREATE DATABASE {NAME}", "postgres")

    def fill(self, rows):
        self.run(insert("encode(convert_to('n' || n || '@example.org', 'UTF8'), 'base64')",
                        f"generate_series(1, {rows}) AS n"))

    def empty(self):
        self.run(f"TRUNCATE mail_queue, {', '.join(OURS)}")

    def describe(self):
        return "PostgreSQL " + self.run("SELECT current_setting('server_version') || ', synchronous_commit=' || "
                                        "current_setting('synchronous_commit')")


class Sqlite:
    name = "sqlite"

    def __init__(self, directory):
        self.path = f"{directory}/{NAME}.sqlite"
        self.url = f"sqlite:{self.path}"

    def connect(self):
        connection = sqlite3.connect(self.path, isolation_level=None)
        connection.create_function("base64", 1, base64_of)
        return connection

    def fill(self, rows):
        numbers = f"(WITH RECURSIVE s(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM s WHERE n < {rows}) SELECT n FROM s)"
        with self.connect() as connection:
            connection.execute(insert("base64('n' || n || '@example.org')", numbers))

    def empty(self):
        with self.connect() as connection:
            for table in ("mail_queue", *OURS):
                connection.execute(f"DELETE FROM {table}")

    def left(self):
        with self.connect() as connection:
            return sum(connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]
                       for table in ("mail_queue", "mailqueue_delivery"))

    def describe(self):
        return "SQLite, as the program brings it"


def opened(name, directory):
    return {"mariadb": MariaDb, "postgres": Postgres, "sqlite": lambda: Sqlite(directory)}[name]()
