//! A link to a database server that can be cut and stalled, at a moment of the test's choice.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use url::Url;

/// What happens to the packet that was waited for.
#[derive(Clone, Copy, Debug)]
pub enum Fault {
    /// The server never gets it; the connection ends.
    Cut,
    /// The server gets it, its answer is lost, the connection ends.
    LoseAnswer,
    /// The server gets it, and for so long nothing passes; then the connection ends.
    Stall(Duration),
    /// The server gets it after so long, and nothing is lost.
    Delay(Duration),
}

pub struct Proxy {
    port: u16,
    /// Host and port.
    server: Arc<Mutex<(String, u16)>>,
    armed: Arc<Mutex<Option<(&'static str, Fault)>>>,
    state: watch::Sender<State>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct State {
    /// Connections of an earlier generation end.
    generation: u64,
    refuses: bool,
    stalls: bool,
    /// Nothing passes on connections of an earlier one of these, and they do not end.
    silenced: u64,
}

impl Proxy {
    /// Passes everything on to the server of this URL.
    pub async fn to(server: &Url) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let port = listener.local_addr().expect("address").port();
        let server = Arc::new(Mutex::new(place(server)));
        let leads_to = Arc::clone(&server);
        let armed = Arc::default();
        let state = watch::Sender::new(State::default());
        let (faults, states) = (Arc::clone(&armed), state.clone());
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                if states.borrow().refuses {
                    continue;
                }
                let server = leads_to.lock().unwrap().clone();
                let (faults, states) = (Arc::clone(&faults), states.subscribe());
                tokio::spawn(async move {
                    let server = TcpStream::connect((server.0.as_str(), server.1)).await;
                    pass(client, server.expect("server"), &faults, states).await;
                });
            }
        });
        Self { port, server, armed, state }
    }

    /// New connections lead to the server of this URL; those that are there stay as they are.
    pub fn lead_to(&self, server: &Url) {
        *self.server.lock().unwrap() = place(server);
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    /// The next packet of a client in which `text` stands suffers this.
    pub fn arm(&self, text: &'static str, fault: Fault) {
        *self.armed.lock().unwrap() = Some((text, fault));
    }

    /// It has come to pass.
    pub fn has_fired(&self) -> bool {
        self.armed.lock().unwrap().is_none()
    }

    /// Ends all connections; new ones can be made.
    pub fn cut(&self) {
        self.state.send_modify(|state| state.generation += 1);
    }

    /// Ends all connections, and lets nobody in.
    pub fn close(&self) {
        self.state.send_modify(|state| (state.generation, state.refuses) = (state.generation + 1, true));
    }

    /// Nothing passes any more, and nothing ends.
    pub fn stall(&self) {
        self.state.send_modify(|state| state.stalls = true);
    }

    /// Nothing passes any more on the connections that are there, and none of them ends; new ones pass everything. A
    /// firewall that has forgotten its connections does this.
    pub fn forget(&self) {
        self.state.send_modify(|state| state.silenced += 1);
    }

    /// As at the beginning.
    pub fn open(&self) {
        self.state.send_modify(|state| (state.refuses, state.stalls) = (false, false));
    }
}

fn place(server: &Url) -> (String, u16) {
    (server.host_str().expect("host").to_owned(), server.port().expect("port"))
}

async fn pass(
    mut client: TcpStream,
    mut server: TcpStream,
    armed: &Mutex<Option<(&'static str, Fault)>>,
    mut states: watch::Receiver<State>,
) {
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let born = *states.borrow();
    let (mut question, mut answer) = (vec![0; 65_536], vec![0; 65_536]);
    let mut deaf = None;
    loop {
        let state = *states.borrow_and_update();
        if state.generation != born.generation {
            return;
        }
        let stalls = state.stalls || state.silenced != born.silenced;
        tokio::select! {
            changed = states.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            () = async { tokio::time::sleep_until(deaf.unwrap_or_else(tokio::time::Instant::now)).await },
                if deaf.is_some() => return,
            read = client.read(&mut question), if !stalls && deaf.is_none() => {
                let Ok(length @ 1..) = read else { return };
                let packet = &question[..length];
                match hit(armed, packet) {
                    None => {}
                    Some(Fault::Cut) => return,
                    Some(Fault::LoseAnswer) => {
                        // Until the server has begun to answer.
                        let _ = server.write_all(packet).await;
                        let _ = server.read(&mut answer).await;
                        return;
                    }
                    Some(Fault::Stall(time)) => deaf = Some(tokio::time::Instant::now() + time),
                    Some(Fault::Delay(time)) => tokio::time::sleep(time).await,
                }
                if server.write_all(packet).await.is_err() {
                    return;
                }
            }
            read = server.read(&mut answer), if !stalls && deaf.is_none() => {
                let Ok(length @ 1..) = read else { return };
                if client.write_all(&answer[..length]).await.is_err() {
                    return;
                }
            }
        }
    }
}

fn hit(armed: &Mutex<Option<(&'static str, Fault)>>, packet: &[u8]) -> Option<Fault> {
    let mut armed = armed.lock().unwrap();
    let (text, fault) = (*armed)?;
    memchr::memmem::find(packet, text.as_bytes())?;
    *armed = None;
    Some(fault)
}
