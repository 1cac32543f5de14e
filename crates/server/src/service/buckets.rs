//! Operations on buckets.

use s3s::dto::*;
use s3s::{S3Request, S3Result, s3_error};

use super::Service;
use crate::directory::is_directory;
use crate::sessions::Mode;

/// The region that S3 leaves unnamed in a bucket's location.
const UNNAMED_REGION: &str = "us-east-1";

impl Service {
    pub(super) async fn list_buckets(
        &self,
        request: S3Request<ListBucketsInput>,
    ) -> S3Result<ListBucketsOutput> {
        let prefix = request.input.prefix.unwrap_or_default();
        // Directory buckets have a listing of their own, ListDirectoryBuckets, which is not here.
        let buckets = self.store.buckets().into_iter();
        let buckets = buckets.filter(|(name, _)| name.starts_with(&prefix) && !is_directory(name));
        let buckets = buckets.map(|(name, created)| Bucket {
            bucket_region: Some(self.region.clone()),
            creation_date: Some(created.into()),
            name: Some(name),
        });
        let owner = Owner { display_name: Some("s3dcp".to_owned()), id: Some("s3dcp".to_owned()) };
        Ok(ListBucketsOutput { buckets: Some(buckets.collect()), owner: Some(owner), ..Default::default() })
    }

    pub(super) async fn create_bucket(
        &self,
        request: S3Request<CreateBucketInput>,
    ) -> S3Result<CreateBucketOutput> {
        let bucket = request.input.bucket;
        self.store.create_bucket(&bucket)?;
        Ok(CreateBucketOutput { location: Some(format!("/{bucket}")) })
    }

    pub(super) async fn create_session(
        &self,
        request: S3Request<CreateSessionInput>,
    ) -> S3Result<CreateSessionOutput> {
        let input = request.input;
        self.store.check_bucket(&input.bucket)?;
        let mode = match input.session_mode.as_ref().map(SessionMode::as_str) {
            None | Some(SessionMode::READ_WRITE) => Mode::ReadWrite,
            Some(SessionMode::READ_ONLY) => Mode::ReadOnly,
            Some(_) => return Err(s3_error!(InvalidArgument, "Invalid x-amz-create-session-mode")),
        };
        let session = self.sessions.create(&input.bucket, mode);
        let credentials = SessionCredentials {
            access_key_id: session.access_key,
            secret_access_key: session.secret_key,
            session_token: session.token,
            expiration: session.expiration.into(),
        };
        Ok(CreateSessionOutput {
            credentials,
            server_side_encryption: input.server_side_encryption,
            ssekms_key_id: input.ssekms_key_id,
            ..Default::default()
        })
    }

    pub(super) async fn delete_bucket(
        &self,
        request: S3Request<DeleteBucketInput>,
    ) -> S3Result<DeleteBucketOutput> {
        self.store.delete_bucket(&request.input.bucket)?;
        Ok(DeleteBucketOutput {})
    }

    pub(super) async fn head_bucket(
        &self,
        request: S3Request<HeadBucketInput>,
    ) -> S3Result<HeadBucketOutput> {
        self.store.check_bucket(&request.input.bucket)?;
        Ok(HeadBucketOutput { bucket_region: Some(self.region.clone()), ..Default::default() })
    }

    pub(super) async fn get_bucket_location(
        &self,
        request: S3Request<GetBucketLocationInput>,
    ) -> S3Result<GetBucketLocationOutput> {
        self.store.check_bucket(&request.input.bucket)?;
        let named =
            (self.region != UNNAMED_REGION).then(|| BucketLocationConstraint::from(self.region.clone()));
        Ok(GetBucketLocationOutput { location_constraint: named })
    }
}
