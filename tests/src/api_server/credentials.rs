//! Who the server is and whom it lets in: a certificate made for the run, a token in a file, and the kubeconfig that
//! names both.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Result;
use rcgen::{CertificateParams, KeyPair, SanType};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

/// Files in a folder, and the key.
pub struct Credentials {
    folder: PathBuf,
    certificate: rcgen::Certificate,
    key: KeyPair,
}

impl Credentials {
    /// Makes a certificate for `address` and a first token.
    pub fn make(folder: &Path, address: IpAddr) -> Result<Self> {
        let mut parameters = CertificateParams::new(Vec::new())?;
        parameters.subject_alt_names.push(SanType::IpAddress(address));
        let key = KeyPair::generate()?;
        let certificate = parameters.self_signed(&key)?;
        fs::create_dir_all(folder)?;
        let credentials = Self { folder: folder.to_owned(), certificate, key };
        fs::write(folder.join("ca.crt"), credentials.certificate.pem())?;
        fs::write(folder.join("tls.key"), credentials.key.serialize_pem())?;
        credentials.write_token("first")?;
        Ok(credentials)
    }

    /// The kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.folder.join("kubeconfig")
    }

    /// The token's file.
    pub fn token_file(&self) -> PathBuf {
        self.folder.join("token")
    }

    /// Puts another token into the file, whole or not at all.
    pub fn write_token(&self, token: &str) -> Result<()> {
        let next = self.folder.join("token.new");
        fs::write(&next, token)?;
        Ok(fs::rename(next, self.token_file())?)
    }

    /// Writes a kubeconfig with two contexts: `scripted`, the current one, and `nobody`, which leads nowhere.
    pub fn write_kubeconfig(&self, server: SocketAddr) -> Result<()> {
        let text = format!(
            "apiVersion: v1
kind: Config
current-context: scripted
clusters:
- name: scripted
  cluster: {{server: 'https://{server}', certificate-authority: '{ca}'}}
- name: nobody
  cluster: {{server: 'https://127.0.0.1:1'}}
users:
- name: node
  user: {{tokenFile: '{token}'}}
contexts:
- name: scripted
  context: {{cluster: scripted, user: node}}
- name: nobody
  context: {{cluster: nobody, user: node}}
",
            ca = self.folder.join("ca.crt").display(),
            token = self.token_file().display(),
        );
        Ok(fs::write(self.kubeconfig(), text)?)
    }

    /// What makes TLS of a connection.
    pub fn acceptor(&self) -> Result<TlsAcceptor> {
        let key = PrivateKeyDer::try_from(self.key.serialize_der()).map_err(anyhow::Error::msg)?;
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(vec![self.certificate.der().clone()], key)?;
        Ok(TlsAcceptor::from(Arc::new(config)))
    }
}
