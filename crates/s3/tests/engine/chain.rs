//! The AWS credential chain, link by link, each against a stand-in for the service behind it.
//!
//! The chain reads the environment of the process, so each case runs in a process of its own: this test binary again,
//! asked for [`child`] alone.

use std::process::Stdio;

use s3dcp_s3::{Client, ClientConfig};

use crate::support::{Act, Responder, response, with};

const EXPIRY: &str = "2099-01-01T00:00:00Z";

/// S3, the container endpoint, instance metadata, STS and the SSO portal behind one port.
async fn services() -> Responder {
    Responder::start(|_, seen| {
        let json = |id: &str| {
            format!(
                r#"{{"Code":"Success","AccessKeyId":"{id}","SecretAccessKey":"S","Token":"T","Expiration":"{EXPIRY}"}}"#
            )
        };
        let target = seen.target.as_str();
        let text = if target == "/container" {
            json("FROM-CONTAINER")
        } else if target == "/latest/api/token" {
            let ttl = [("x-aws-ec2-metadata-token-ttl-seconds", "21600")];
            return Act::Answer(response("200 OK", &ttl, b"token"));
        } else if target.ends_with("/role") {
            json("FROM-METADATA")
        } else if target.starts_with("/latest/meta-data/iam/security-credentials") {
            "role".to_owned()
        } else if target.starts_with("/federation/credentials") {
            r#"{"roleCredentials":{"accessKeyId":"FROM-SSO","secretAccessKey":"S","sessionToken":"T","expiration":4070908800000}}"#
                .to_owned()
        } else if target == "/" && seen.method == "POST" {
            format!(
                "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>\
                 <AccessKeyId>FROM-WEB-IDENTITY</AccessKeyId><SecretAccessKey>S</SecretAccessKey>\
                 <SessionToken>T</SessionToken><Expiration>{EXPIRY}</Expiration></Credentials>\
                 <AssumedRoleUser><Arn>arn:aws:sts::1:assumed-role/r/s</Arn><AssumedRoleId>A:s</AssumedRoleId>\
                 </AssumedRoleUser></AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
            )
        } else {
            String::new()
        };
        Act::Answer(response("200 OK", &[], text.as_bytes()))
    })
    .await
}

/// Runs one request in a process with this environment alone; the access key id it signed with, or the error.
async fn signed_with(
    services: &Responder,
    home: &std::path::Path,
    variables: &[(&str, &str)],
) -> Result<String, String> {
    let before = services.seen().len();
    let output = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "chain::child", "--ignored", "--nocapture"])
        .env_clear()
        .env("HOME", home)
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("AWS_REGION", "us-east-1")
        .env("AWS_ENDPOINT_URL_S3", services.url())
        .env("CHAIN_TEST_CHILD", "1")
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .await
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let Some((_, line)) = text.split_once("RESULT ") else { panic!("{text} {output:?}") };
    let line = line.lines().next().unwrap();
    if line != "ok" {
        return Err(line.to_owned());
    }
    let seen = services.seen();
    let authorization = seen[before..].iter().find(|seen| seen.target == "/bkt/k").unwrap();
    let authorization = authorization.header("authorization").unwrap();
    Ok(authorization.split_once("Credential=").unwrap().1.split('/').next().unwrap().to_owned())
}

#[tokio::test]
#[ignore = "run by the tests of the chain, in an environment that they make"]
async fn child() {
    if std::env::var_os("CHAIN_TEST_CHILD").is_none() {
        return;
    }
    let profile = std::env::var("CHAIN_TEST_PROFILE").ok();
    let client = Client::new(with(ClientConfig::default(), |config| config.profile = profile)).unwrap();
    match client.get_object("bkt", "k").await {
        Ok(_) => println!("RESULT ok"),
        Err(error) => println!("RESULT {error:?}"),
    }
}

#[tokio::test]
async fn every_link_of_the_chain_gives_its_credentials() {
    let services = services().await;
    let url = services.url();
    let home = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = home.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let keys_file = write("keys", "[default]\naws_access_key_id=FROM-PROFILE\naws_secret_access_key=S\n");
    let process_file = write(
        "process",
        "[profile tool]\ncredential_process = printf '{\"Version\":1,\"AccessKeyId\":\"FROM-PROCESS\",\"SecretAccessKey\":\"S\"}'\n",
    );
    let sso_file = write(
        "sso",
        "[profile portal]\nsso_start_url=https://portal.example/start\nsso_region=us-east-1\nsso_account_id=1\nsso_role_name=r\n",
    );
    // Named by the SHA-1 of the start URL.
    write(
        ".aws/sso/cache/5863e3e4b5a9564b6e829cf4aa6724bdbf9788a5.json",
        r#"{"accessToken":"t","expiresAt":"2099-01-01T00:00:00Z","region":"us-east-1","startUrl":"https://portal.example/start"}"#,
    );
    let token = write("token", "a.web.identity");
    let container = format!("{url}/container");
    let cases: [(&str, Vec<(&str, &str)>); 7] = [
        ("FROM-ENVIRONMENT", vec![("AWS_ACCESS_KEY_ID", "FROM-ENVIRONMENT"), ("AWS_SECRET_ACCESS_KEY", "S")]),
        ("FROM-PROFILE", vec![("AWS_SHARED_CREDENTIALS_FILE", &keys_file)]),
        ("FROM-PROCESS", vec![("AWS_CONFIG_FILE", &process_file), ("AWS_PROFILE", "tool")]),
        (
            "FROM-SSO",
            vec![("AWS_CONFIG_FILE", &sso_file), ("AWS_PROFILE", "portal"), ("AWS_ENDPOINT_URL_SSO", url)],
        ),
        (
            "FROM-WEB-IDENTITY",
            vec![
                ("AWS_WEB_IDENTITY_TOKEN_FILE", &token),
                ("AWS_ROLE_ARN", "arn:aws:iam::1:role/r"),
                ("AWS_ENDPOINT_URL_STS", url),
            ],
        ),
        ("FROM-CONTAINER", vec![("AWS_CONTAINER_CREDENTIALS_FULL_URI", &container)]),
        ("FROM-METADATA", vec![("AWS_EC2_METADATA_SERVICE_ENDPOINT", url)]),
    ];
    for (id, variables) in &cases {
        assert_eq!(signed_with(&services, home.path(), variables).await.as_deref(), Ok(*id));
    }
    // A profile that is asked for by name wins over the environment.
    let named = [
        ("CHAIN_TEST_PROFILE", "tool"),
        ("AWS_CONFIG_FILE", process_file.as_str()),
        ("AWS_ACCESS_KEY_ID", "FROM-ENVIRONMENT"),
        ("AWS_SECRET_ACCESS_KEY", "S"),
    ];
    assert_eq!(signed_with(&services, home.path(), &named).await.as_deref(), Ok("FROM-PROCESS"));
}

#[tokio::test]
async fn without_credentials_the_error_says_where_they_were_looked_for() {
    let services = services().await;
    let home = tempfile::tempdir().unwrap();
    let error =
        signed_with(&services, home.path(), &[("AWS_EC2_METADATA_DISABLED", "true")]).await.unwrap_err();
    for word in
        ["Denied", "AWS_ACCESS_KEY_ID", "~/.aws/credentials", "AWS_WEB_IDENTITY_TOKEN_FILE", "metadata"]
    {
        assert!(error.contains(word), "{error}");
    }
    assert!(services.seen().is_empty());
}

#[tokio::test]
async fn without_a_region_the_error_names_the_setting() {
    let services = services().await;
    let home = tempfile::tempdir().unwrap();
    let error = signed_with(&services, home.path(), &[("AWS_REGION", "")]).await.unwrap_err();
    assert!(error.contains("Config") && error.contains("AWS_DEFAULT_REGION"), "{error}");
}
