//! The Debian package: built from the program at hand, judged, installed, used as the README says, removed and purged.

#[test]
fn the_changelog_begins_with_the_version_of_the_program() {
    let changelog = include_str!("../../config/debian/changelog");
    let version = format!("mailqueue ({}-1) ", env!("CARGO_PKG_VERSION"));
    assert!(changelog.starts_with(&version), "config/debian/changelog wants an entry that begins with: {version}");
}

/// Needs Debian's tools, and for the most part a machine on which systemd can be started once more.
mod debian {
    use std::path::PathBuf;
    use std::process::Command;

    use serde_json::Value;
    use tempfile::TempDir;

    use crate::support::catcher::Catcher;
    use crate::support::database::{self, TestDatabase};
    use crate::support::house::said;
    use crate::support::machine::Machine;
    use crate::support::variable;

    /// Goes with its directory.
    struct Package {
        file: PathBuf,
        _directory: TempDir,
    }

    impl Package {
        fn build() -> Self {
            let directory = tempfile::tempdir().expect("temporary directory");
            let file = directory.path().join("mailqueue.deb");
            let mut build = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/config/debian/build"));
            let output = build
                .args(["--debug", "--no-build", "--fast", "--compress-type", "gz", "--quiet", "--output"])
                .arg(&file)
                .output();
            let output = output.expect("config/debian/build");
            assert!(output.status.success(), "{}", said(&output));
            Self { file, _directory: directory }
        }

        fn install(&self, machine: &Machine) {
            machine.write("/root/mailqueue.deb", std::fs::read(&self.file).expect("package"));
            machine.ok("dpkg --install /root/mailqueue.deb");
        }
    }

    #[test]
    fn lintian_finds_nothing_to_say_against_the_package() {
        let package = Package::build();
        let output = Command::new(variable("MAILQUEUE_TEST_LINTIAN"))
            .args(["--allow-root", "--fail-on", "error,warning"])
            .arg(&package.file)
            .output()
            .expect("lintian");
        assert!(output.status.success(), "{}", said(&output));
    }

    #[test]
    fn the_manual_has_a_page_for_each_command_and_mandoc_warns_of_none() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let mailqueue = || Command::new(env!("CARGO_BIN_EXE_mailqueue"));
        let output = mailqueue().arg("man").arg("--out").arg(folder.path()).output().expect("mailqueue");
        assert!(output.status.success(), "{}", said(&output));
        let help = mailqueue().arg("help").output().expect("mailqueue");
        let help = String::from_utf8(help.stdout).expect("UTF-8");
        let commands = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
        // What stands further right goes on with the line above.
        let names = commands.filter(|line| !line.starts_with("   ")).filter_map(|line| line.split_whitespace().next());
        let mut expected: Vec<_> =
            names.filter(|name| *name != "help").map(|name| format!("mailqueue-{name}.1")).collect();
        assert!(expected.len() > 15, "{help}");
        expected.extend(["mailqueue.1".to_owned(), "mailqueue.toml.5".to_owned()]);
        expected.sort();
        let entries = std::fs::read_dir(folder.path()).expect("folder").map(|entry| entry.expect("entry").file_name());
        let mut pages: Vec<_> = entries.map(|name| name.into_string().expect("UTF-8")).collect();
        pages.sort();
        assert_eq!(pages, expected);
        let mut mandoc = Command::new(variable("MAILQUEUE_TEST_MANDOC"));
        let output = mandoc.args(["-T", "lint", "-W", "warning"]).args(&pages).current_dir(folder.path()).output();
        let output = output.expect("mandoc");
        assert!(output.status.success(), "{}", said(&output));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_package_is_installed_used_upgraded_removed_and_purged() {
        let (package, machine, catcher) = (Package::build(), Machine::start(), Catcher::start().await);
        package.install(&machine);
        assert_eq!(machine.ok("systemctl is-enabled mailqueue || true"), "disabled");
        assert_eq!(machine.ok("systemctl is-active mailqueue || true"), "inactive");
        assert_eq!(machine.ok("find /etc -path '*systemd*' -name '*mailqueue*'"), "");
        for (path, expected) in [
            ("/etc/mailqueue/mailqueue.toml", "640 root:mailqueue"),
            ("/var/lib/mailqueue", "700 mailqueue:mailqueue"),
            ("/usr/bin/mailqueue", "755 root:root"),
            ("/usr/lib/systemd/system/mailqueue.service", "644 root:root"),
            ("/usr/share/mailqueue/checkmk/mailqueue", "755 root:root"),
            ("/usr/share/mailqueue/alerts.yml", "644 root:root"),
            ("/usr/share/bash-completion/completions/mailqueue", "644 root:root"),
            ("/usr/share/zsh/vendor-completions/_mailqueue", "644 root:root"),
            ("/usr/share/fish/vendor_completions.d/mailqueue.fish", "644 root:root"),
            ("/usr/share/man/man1/mailqueue-list.1.gz", "644 root:root"),
            ("/usr/share/man/man5/mailqueue.toml.5.gz", "644 root:root"),
        ] {
            assert_eq!(machine.ok(&format!("stat --format '%a %U:%G' {path}")), expected, "{path}");
        }
        let user = machine.ok("getent passwd mailqueue");
        assert!(user.ends_with(":/var/lib/mailqueue:/usr/sbin/nologin"), "{user}");
        machine.ok("bash -n /usr/share/bash-completion/completions/mailqueue");

        // As the README says, with an SQLite file in the only place that the service may write to.
        let configuration = format!(
            "[[queue]]\nname = \"newsletter\"\ndatabase = \"sqlite:/var/lib/mailqueue/queue.sqlite\"\n\
             table = \"mail_queue\"\n[relay]\nhost = \"127.0.0.1\"\nport = {}\ntls = \"none\"\n",
            catcher.port()
        );
        machine.write("/etc/mailqueue/mailqueue.toml", &configuration);
        machine.ok("runuser -u mailqueue -- mailqueue migrate --producers");
        machine.ok("runuser -u mailqueue -- mailqueue check");
        let enqueue = "runuser -u mailqueue -- mailqueue enqueue --from a@example.org --to b@example.org --subject Hi";
        assert_eq!(machine.ok(enqueue), "newsletter/1");
        machine.ok("runuser -u mailqueue -- mailqueue once");
        assert_eq!(catcher.received().len(), 1);

        // An upgrade leaves the configuration alone, starts nothing that did not run, and keeps running what did.
        package.install(&machine);
        assert_eq!(machine.ok("systemctl is-active mailqueue || true"), "inactive");
        assert_eq!(machine.ok("cat /etc/mailqueue/mailqueue.toml"), configuration.trim_end());
        machine.ok("systemctl start mailqueue");
        let process = machine.ok("systemctl show --property MainPID mailqueue");
        package.install(&machine);
        assert_eq!(machine.ok("systemctl is-active mailqueue"), "active");
        assert_ne!(machine.ok("systemctl show --property MainPID mailqueue"), process);

        machine.ok("dpkg --remove mailqueue");
        assert_eq!(machine.ok("systemctl is-active mailqueue || true"), "inactive");
        assert_eq!(machine.ok("pgrep -x mailqueue || true"), "");
        assert_eq!(machine.ok("cat /etc/mailqueue/mailqueue.toml"), configuration.trim_end());
        assert_eq!(machine.ok("ls /usr/bin/mailqueue /usr/share/mailqueue 2>/dev/null || true"), "");

        machine.write("/etc/mailqueue/newsletter-db", "secret");
        let purge = machine.run("dpkg --purge mailqueue");
        assert!(purge.status.success(), "{}", said(&purge));
        assert!(said(&purge).contains("/var/lib/mailqueue is left: its ledger knows"), "{}", said(&purge));
        let left =
            machine.ok("find /etc /usr /var/lib/systemd /var/lib/dpkg/info -name '*mailqueue*' ! -path '/usr/src/*'");
        assert_eq!(left, "");
        machine.ok("test -s /var/lib/mailqueue/ledger.sqlite");

        // With no ledger there is nothing to keep.
        package.install(&machine);
        machine.ok("rm /var/lib/mailqueue/* && dpkg --purge mailqueue && test ! -e /var/lib/mailqueue");
    }

    #[test]
    fn the_unit_is_well_formed_and_systemd_rates_its_exposure_at_1_5_or_better() {
        let (package, machine) = (Package::build(), Machine::start());
        package.install(&machine);
        let unit = "/usr/lib/systemd/system/mailqueue.service";
        let verified = machine.run(&format!("systemd-analyze verify {unit}"));
        let about_us = said(&verified).lines().filter(|line| line.contains("mailqueue")).collect::<String>();
        assert!(verified.status.success() && about_us.is_empty(), "{}", said(&verified));
        machine.ok(&format!("systemd-analyze security --no-pager --offline=yes --threshold=15 {unit}"));
    }

    fn service(database: &TestDatabase, smarthost: u16) -> String {
        let mut url = database.url.clone();
        url.set_password(None).expect("a server's URL");
        format!(
            "[[queue]]\nname = \"newsletter\"\ndatabase = \"{url}\"\n\
             password_file = \"${{CREDENTIALS_DIRECTORY}}/newsletter-db\"\ntable = \"mail_queue\"\n\
             [relay]\nhost = \"127.0.0.1\"\nport = {smarthost}\ntls = \"none\"\n[log]\nformat = \"journald\"\n"
        )
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_service_works_in_its_sandbox_with_handed_over_secrets_and_logs_fields_to_the_journal() {
        let (database, catcher) = (database::mariadb().await, Catcher::start().await);
        let (package, machine) = (Package::build(), Machine::start());
        package.install(&machine);
        machine.write("/etc/mailqueue/mailqueue.toml", service(&database, catcher.port()));
        let password = database.url.password().expect("the account has one");
        machine.ok("install -m 0600 /dev/null /etc/mailqueue/newsletter-db");
        machine.write("/etc/mailqueue/newsletter-db", password);
        machine.ok("CREDENTIALS_DIRECTORY=/etc/mailqueue mailqueue migrate --producers");
        machine.ok("CREDENTIALS_DIRECTORY=/etc/mailqueue mailqueue check");

        // The other secrets that the unit names do not exist, and nobody asks for them.
        machine.ok("systemctl start mailqueue");
        let enqueue = "CREDENTIALS_DIRECTORY=/etc/mailqueue \
            mailqueue enqueue --from a@example.org --to b@example.org --subject Grüße";
        assert_eq!(machine.ok(enqueue), "newsletter/1");
        machine.ok("systemctl kill --signal USR1 mailqueue");
        catcher.wait_for(1).await;
        machine.ok("systemctl reload mailqueue");
        let status = machine.ok("systemctl show --property StatusText,NRestarts mailqueue");
        assert!(status.contains("relay up") && status.contains("NRestarts=0"), "{status}");

        let process = machine.ok("cat /proc/$(systemctl show --value --property MainPID mailqueue)/status");
        for line in ["NoNewPrivs:\t1", "Seccomp:\t2", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000"] {
            assert!(process.contains(line), "{line} in\n{process}");
        }
        // What the process sees: nothing of the machine may be written to but its state.
        let inside = |command: &str| {
            let enter = "nsenter --target $(systemctl show --value --property MainPID mailqueue) --mount";
            machine.run(&format!("{enter} -- sh -c '{command}'")).status.success()
        };
        assert!(inside("touch /var/lib/mailqueue/here && rm /var/lib/mailqueue/here"));
        for forbidden in ["touch /etc/here", "touch /usr/here", "touch /var/log/here", "ls /root/*", "ls /dev/full0"] {
            assert!(!inside(forbidden), "{forbidden}");
        }

        machine.ok("systemctl stop mailqueue");
        let ended = machine.ok("systemctl show --property Result,ExecMainStatus mailqueue");
        assert!(ended.contains("Result=success") && ended.contains("ExecMainStatus=0"), "{ended}");

        machine.ok("journalctl --sync");
        let story = machine.ok("journalctl --output json MAILQUEUE_ID=newsletter/1");
        let events: Vec<Value> = story.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
        let messages: Vec<_> = events.iter().filter_map(|event| event["MESSAGE"].as_str()).collect();
        // Readable without the fields, as a plain `journalctl` shows it.
        for expected in ["claimed: attempt=1", "recipient accepted: recipients=…@example.org reply=\"250 ", "deleted"]
        {
            let expected = format!("newsletter/1 {expected}");
            assert!(messages.iter().any(|message| message.starts_with(&expected)), "{expected} in {messages:?}");
        }
        for event in events {
            assert_eq!((&event["PRIORITY"], &event["SYSLOG_IDENTIFIER"]), (&"6".into(), &"mailqueue".into()));
            assert_eq!(event["_SYSTEMD_UNIT"], "mailqueue.service");
        }
    }
}
