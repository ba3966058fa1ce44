//! Generic netlink: one socket for one family, one message at a time.

use std::fmt::Debug;

use anyhow::{Context, bail};
use netlink_packet_generic::ctrl::nlas::GenlCtrlAttrs;
use netlink_packet_generic::ctrl::{GenlCtrl, GenlCtrlCmd};
use netlink_packet_generic::{GenlFamily, GenlHeader, GenlMessage};
use rtnetlink::packet_core::{
    Emitable, NLM_F_ACK, NLM_F_REQUEST, NetlinkDeserializable, NetlinkMessage, NetlinkPayload,
    NetlinkSerializable, ParseableParametrized,
};
use rtnetlink::sys::protocols::NETLINK_GENERIC;
use rtnetlink::sys::{Socket, SocketAddr};

/// What a family's messages are.
pub trait Message:
    GenlFamily + Emitable + ParseableParametrized<[u8], GenlHeader> + Clone + Debug + Eq
{
}

impl<F: GenlFamily + Emitable + ParseableParametrized<[u8], GenlHeader> + Clone + Debug + Eq> Message for F {}

/// A socket, and the number that the kernel gave the family.
#[derive(Debug)]
pub struct Generic {
    socket: Socket,
    family: u16,
}

impl Generic {
    /// Opens a socket for the family `name`, in the network namespace of this thread.
    ///
    /// # Errors
    /// The kernel has no such family.
    pub fn open(name: &str) -> anyhow::Result<Self> {
        let mut socket = Socket::new(NETLINK_GENERIC).context("cannot open a generic netlink socket")?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        let question =
            GenlCtrl { cmd: GenlCtrlCmd::GetFamily, nlas: vec![GenlCtrlAttrs::FamilyName(name.into())] };
        let answer = ask(&socket, GenlMessage::from_payload(question))?;
        let number = answer.nlas.iter().find_map(|attribute| match attribute {
            GenlCtrlAttrs::FamilyId(id) => Some(*id),
            _ => None,
        });
        Ok(Self {
            socket,
            family: number.with_context(|| format!("the kernel has no netlink family {name}"))?,
        })
    }

    /// Asks a question.
    ///
    /// # Errors
    /// With the kernel's word on it.
    pub fn ask<F: Message>(&self, question: F) -> anyhow::Result<F> {
        ask(&self.socket, self.message(question))
    }

    /// Orders something.
    ///
    /// # Errors
    /// With the kernel's word on it.
    pub fn tell<F: Message>(&self, order: F) -> anyhow::Result<()> {
        match exchange(&self.socket, self.message(order), NLM_F_REQUEST | NLM_F_ACK)? {
            NetlinkPayload::Error(answer) if answer.code.is_none() => Ok(()),
            other => refused(other),
        }
    }

    fn message<F: Message>(&self, payload: F) -> GenlMessage<F> {
        let mut message = GenlMessage::from_payload(payload);
        message.set_resolved_family_id(self.family);
        message
    }
}

fn ask<F: Message>(socket: &Socket, question: GenlMessage<F>) -> anyhow::Result<F> {
    match exchange(socket, question, NLM_F_REQUEST)? {
        NetlinkPayload::InnerMessage(message) => Ok(message.payload),
        other => refused(other),
    }
}

fn refused<F, T>(answer: NetlinkPayload<GenlMessage<F>>) -> anyhow::Result<T> {
    match answer {
        NetlinkPayload::Error(error) => Err(error.to_io()).context("the kernel refuses"),
        _ => bail!("unexpected answer"),
    }
}

fn exchange<F: Message>(
    socket: &Socket,
    message: GenlMessage<F>,
    flags: u16,
) -> anyhow::Result<NetlinkPayload<GenlMessage<F>>>
where
    GenlMessage<F>: NetlinkSerializable + NetlinkDeserializable,
{
    let mut message = NetlinkMessage::from(message);
    message.header.flags = flags;
    message.finalize();
    let mut octets = vec![0; message.buffer_len()];
    message.serialize(&mut octets);
    socket.send(&octets, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    Ok(NetlinkMessage::<GenlMessage<F>>::deserialize(&answer).context("malformed answer")?.payload)
}
