//! `mailqueue render`: the files that it writes, and those that it leaves alone.

use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::process::Output;

use mailqueue::mail::Columns;
use serde_json::{Value, json};

use super::{MAIL, enqueue, installation, queue, stderr, stdout};
use crate::support::binary::Installation;

#[tokio::test]
async fn render_writes_each_mail_with_its_envelope_and_names_what_cannot_become_one() {
    let installation = installation().await;
    enqueue(&installation, "newsletter", MAIL).await;
    queue(&installation, "admidio").insert(&Columns::default()).await.expect("SQLite");
    let output = installation.run(&["render", "--all", "--out", "rendered"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(stdout(&output).contains("admidio/1: no mail: "), "{}", stdout(&output));
    let folder = installation.path().join("rendered");
    let raw = installation.run(&["show", "newsletter/1", "--raw"]).await;
    assert_eq!(std::fs::read(folder.join("newsletter-1.eml")).expect("the mail"), raw.stdout);
    let envelope = std::fs::read(folder.join("newsletter-1.json")).expect("the envelope");
    let envelope: Value = serde_json::from_slice(&envelope).expect("JSON");
    assert_eq!(envelope["sender"], "joerg@example.org");
    assert_eq!(envelope["recipients"], json!(["anna@example.org", "bea@example.org"]));
    assert_eq!(std::fs::read_dir(&folder).expect("the folder").count(), 2);
}

fn mode(path: &Path) -> u32 {
    std::fs::symlink_metadata(path).expect("it exists").permissions().mode() & 0o7777
}

#[tokio::test]
async fn what_it_writes_is_for_its_owner_only_also_the_folders_on_the_way() {
    let installation = installation().await;
    enqueue(&installation, "newsletter", MAIL).await;
    let output = installation.run(&["render", "--all", "--out", "trial/today"]).await;
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let folder = installation.path().join("trial/today");
    assert_eq!((mode(&installation.path().join("trial")), mode(&folder)), (0o700, 0o700));
    assert_eq!((mode(&folder.join("newsletter-1.eml")), mode(&folder.join("newsletter-1.json"))), (0o600, 0o600));
    let other = installation.path().join("other");
    std::fs::create_dir(&other).expect("mkdir");
    std::fs::set_permissions(&other, std::fs::Permissions::from_mode(0o755)).expect("chmod");
    assert!(installation.run(&["render", "--all", "--out", "other/"]).await.status.success());
    assert_eq!(
        (mode(&other), mode(&other.join("newsletter-1.eml"))),
        (0o755, 0o600),
        "a folder of others stays as it is"
    );
}

/// Renders three rows into `out`, of which the second cannot be written.
async fn obstructed(installation: &Installation) -> Output {
    for _ in 0..3 {
        enqueue(installation, "newsletter", MAIL).await;
    }
    installation.run(&["render", "--all", "--out", "out"]).await
}

#[tokio::test]
async fn a_file_that_exists_is_never_overwritten_and_what_was_written_so_far_is_said() {
    for existing in ["newsletter-2.eml", "newsletter-2.json"] {
        let installation = installation().await;
        let folder = installation.path().join("out");
        std::fs::create_dir(&folder).expect("mkdir");
        std::fs::write(folder.join(existing), "mine").expect("write");
        let output = obstructed(&installation).await;
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(
            stderr(&output),
            format!("mailqueue: out/{existing} exists, and is not overwritten: name another folder with --out")
        );
        assert!(stdout(&output).ends_with("1 mail written to out, 1 of them repaired; 0 rows cannot become a mail"));
        assert_eq!(std::fs::read_to_string(folder.join(existing)).expect("read"), "mine");
        let mut names: Vec<_> = std::fs::read_dir(&folder)
            .expect("folder")
            .map(|entry| entry.expect("entry").file_name().into_string().expect("UTF-8"))
            .collect();
        names.sort();
        assert_eq!(names, ["newsletter-1.eml", "newsletter-1.json", existing], "no half of a pair is left");
    }
}

#[tokio::test]
async fn no_symbolic_link_is_followed() {
    let installation = installation().await;
    let (folder, elsewhere) = (installation.path().join("out"), installation.path().join("elsewhere"));
    std::fs::create_dir(&folder).expect("mkdir");
    std::fs::create_dir(&elsewhere).expect("mkdir");
    std::fs::write(elsewhere.join("file"), "mine").expect("write");
    symlink(elsewhere.join("file"), folder.join("newsletter-2.eml")).expect("link");
    symlink(elsewhere.join("new"), folder.join("newsletter-3.eml")).expect("link");
    let output = obstructed(&installation).await;
    assert_eq!(output.status.code(), Some(1));
    std::fs::remove_file(folder.join("newsletter-2.eml")).expect("rm");
    let output = installation.run(&["render", "--to=anna@example.org", "--out=out"]).await;
    assert_eq!(output.status.code(), Some(1), "{}", stdout(&output));
    assert_eq!(std::fs::read_to_string(elsewhere.join("file")).expect("read"), "mine");

    symlink(&elsewhere, installation.path().join("link")).expect("link");
    for out in ["link", "link/", "link/."] {
        let output = installation.run(&["render", "--all", "--out", out]).await;
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(
            stderr(&output),
            "mailqueue: link is a symbolic link, which is not followed: name the folder itself with --out"
        );
    }
    assert_eq!(std::fs::read_dir(&elsewhere).expect("folder").count(), 1);
}
