//! A shard file while it goes up: open for items, then finishing in the background, then ended.

use std::mem::replace;

use s3dcp_s3::{Client, Error, ErrorKind, UploadOptions, UploadOutput};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use crate::layout::ShardName;
use crate::save::shard_writer::ShardWriter;

/// A shard file on its way up. Dropped before it is complete, it is given up in the background.
pub struct ShardFile {
    name: ShardName,
    /// Bytes of a full part.
    part_size: u64,
    state: State,
}

enum State {
    Open(Box<ShardWriter>),
    /// Dropping the sender stops the task.
    Finishing(JoinHandle<Result<UploadOutput, Error>>, oneshot::Sender<()>),
    Ended,
}

impl ShardFile {
    /// A new file of this name; nothing is sent yet. Those of a save come from [`Save::shard`](crate::Save::shard).
    #[must_use]
    pub fn new(client: &Client, bucket: &str, name: ShardName, options: UploadOptions) -> ShardFile {
        let upload = client.upload(bucket, &name.key, options);
        let part_size = upload.part_remaining();
        ShardFile { name, part_size, state: State::Open(Box::new(ShardWriter::new(upload))) }
    }

    /// Key, and name in the index.
    #[must_use]
    pub fn name(&self) -> &ShardName {
        &self.name
    }

    /// Bytes of a full part, the first one's.
    #[must_use]
    pub fn part_size(&self) -> u64 {
        self.part_size
    }

    /// Writes the file's items.
    ///
    /// # Errors
    /// `Interrupted` once the file is being finished or was given up.
    pub fn writer(&mut self) -> Result<&mut ShardWriter, Error> {
        match &mut self.state {
            State::Open(writer) => Ok(writer),
            State::Finishing(..) | State::Ended => {
                Err(interrupted("this file was finished or aborted before"))
            }
        }
    }

    /// Lets the rest go up in the background, on the runtime that this is called in; [`ShardFile::wait`] tells how it
    /// ended.
    ///
    /// # Errors
    /// Those of [`ShardFile::writer`].
    ///
    /// # Panics
    /// Outside a tokio runtime.
    pub fn start_finishing(&mut self) -> Result<(), Error> {
        self.writer()?;
        if let State::Open(writer) = replace(&mut self.state, State::Ended) {
            let (stop, stopped) = oneshot::channel();
            let finished = writer.finish_unless(async { stopped.await.unwrap_or(()) });
            self.state = State::Finishing(tokio::spawn(finished), stop);
        }
        Ok(())
    }

    /// Waits until the file is complete. A wait that was cancelled can be begun again.
    ///
    /// # Errors
    /// Those of [`ShardWriter::finish`]; `Interrupted` for a file that is not being finished.
    pub async fn wait(&mut self) -> Result<UploadOutput, Error> {
        let State::Finishing(task, _) = &mut self.state else {
            return Err(interrupted("this file is not being finished"));
        };
        let ended = task.await;
        self.state = State::Ended;
        ended.unwrap_or_else(|failure| Err(interrupted(&format!("the upload's task ended early: {failure}"))))
    }

    /// Completes the file.
    ///
    /// # Errors
    /// Those of [`ShardFile::start_finishing`] and [`ShardFile::wait`].
    pub async fn finish(&mut self) -> Result<UploadOutput, Error> {
        self.start_finishing()?;
        self.wait().await
    }

    /// Gives the file up in the background. Nothing of a file that was still open stays; another may be complete.
    pub fn give_up(&mut self) {
        self.state = State::Ended;
    }

    /// Gives the file up: its end, to be waited for.
    pub fn stop(&mut self) -> impl Future<Output = ()> + Send + use<> {
        let state = replace(&mut self.state, State::Ended);
        async {
            match state {
                State::Open(writer) => writer.abort().await,
                State::Finishing(task, stop) => {
                    drop(stop);
                    // However it ended, nobody wants the object.
                    let _ended = task.await;
                }
                State::Ended => {}
            }
        }
    }

    /// Whether no object of this name can be there, for all that was done with this.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.state, State::Open(_))
    }
}

fn interrupted(message: &str) -> Error {
    Error::new(ErrorKind::Interrupted, message)
}
