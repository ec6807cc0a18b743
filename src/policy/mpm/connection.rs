//! What becomes of a connection after each step of it.
//!
//! Runs in: frontend.  Trusts: nothing; modules answer anything.  Owns: nothing.  Never: touches a connection.

/// In which state a module left the connection (`conn_state_e`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// As it was given to the module.
    Processing,
    KeepAlive,
    WriteCompletion,
    Suspended,
    /// A request of it waits without a thread.
    Parked,
    Linger,
    /// To be called again when the socket is ready.
    WaitIo,
    /// A state that modules must not set, or that is newer than this code.
    Other,
}

/// What `process_connection` gave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Processed {
    /// The hook answered OK or DONE.
    pub ok: bool,
    pub left: Left,
    pub aborted: bool,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Send what is left, then see [`after_flush`].
    Flush,
    /// Wait until the socket is ready, then process again.
    WaitIo,
    /// The module has it until it says otherwise.
    Suspend,
    /// Wait until its request can go on.
    Park,
    /// Close, lingering.
    Linger,
}

/// After `process_connection`. A hook that fails, or leaves the connection as it was, ends it: so it is with MPMs that
/// give each connection a thread, and modules are written for those.
pub fn after_processing(processed: Processed) -> Next {
    if !processed.ok || processed.aborted {
        return Next::Linger;
    }
    match processed.left {
        Left::KeepAlive | Left::WriteCompletion => Next::Flush,
        Left::Suspended => Next::Suspend,
        Left::Parked => Next::Park,
        Left::WaitIo => Next::WaitIo,
        Left::Processing | Left::Linger | Left::Other => Next::Linger,
    }
}

/// What the output filters gave when they were asked to send what they hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flushed {
    pub ok: bool,
    /// Not everything is sent.
    pub output_left: bool,
    /// The filters must read before they can go on (a TLS renegotiation).
    pub wants_read: bool,
    pub keep_alive: bool,
    pub aborted: bool,
    /// The next request is in the input filters already.
    pub input_waits: bool,
    /// This process is ending.
    pub stopping: bool,
}

/// What to do after a flush.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AfterFlush {
    /// Wait until the socket takes more (or gives, see [`Flushed::wants_read`]), then flush again.
    WaitToWrite,
    /// Process the next request.
    Process,
    /// Wait for the next request.
    KeepAlive,
    /// Close, lingering.
    Linger,
}

/// After the output filters were asked to send what they hold.
pub fn after_flush(flushed: Flushed) -> AfterFlush {
    if !flushed.ok {
        AfterFlush::Linger
    } else if flushed.output_left || flushed.wants_read {
        AfterFlush::WaitToWrite
    } else if !flushed.keep_alive || flushed.aborted {
        AfterFlush::Linger
    } else if flushed.input_waits {
        AfterFlush::Process
    } else if flushed.stopping {
        AfterFlush::Linger
    } else {
        AfterFlush::KeepAlive
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Left; 8] = [
        Left::Processing,
        Left::KeepAlive,
        Left::WriteCompletion,
        Left::Suspended,
        Left::Parked,
        Left::Linger,
        Left::WaitIo,
        Left::Other,
    ];

    #[test]
    fn a_failed_or_aborted_connection_ends() {
        for left in ALL {
            assert_eq!(after_processing(Processed { ok: false, left, aborted: false }), Next::Linger);
            assert_eq!(after_processing(Processed { ok: true, left, aborted: true }), Next::Linger);
        }
    }

    #[test]
    fn a_module_may_ask_for_five_things() {
        let next = |left| after_processing(Processed { ok: true, left, aborted: false });
        let expected = [
            Next::Linger,
            Next::Flush,
            Next::Flush,
            Next::Suspend,
            Next::Park,
            Next::Linger,
            Next::WaitIo,
            Next::Linger,
        ];
        assert_eq!(ALL.map(next), expected);
    }

    const SENT: Flushed = Flushed {
        ok: true,
        output_left: false,
        wants_read: false,
        keep_alive: true,
        aborted: false,
        input_waits: false,
        stopping: false,
    };

    #[test]
    fn a_flushed_connection_waits_for_the_next_request() {
        assert_eq!(after_flush(SENT), AfterFlush::KeepAlive);
        assert_eq!(after_flush(Flushed { input_waits: true, ..SENT }), AfterFlush::Process);
        assert_eq!(after_flush(Flushed { keep_alive: false, ..SENT }), AfterFlush::Linger);
        assert_eq!(after_flush(Flushed { aborted: true, ..SENT }), AfterFlush::Linger);
        assert_eq!(after_flush(Flushed { ok: false, output_left: true, ..SENT }), AfterFlush::Linger);
    }

    #[test]
    fn output_goes_out_before_anything_else() {
        let busy = Flushed { output_left: true, input_waits: true, stopping: true, keep_alive: false, ..SENT };
        assert_eq!(after_flush(busy), AfterFlush::WaitToWrite);
        assert_eq!(after_flush(Flushed { wants_read: true, ..SENT }), AfterFlush::WaitToWrite);
    }

    #[test]
    fn an_ending_process_answers_what_has_arrived_and_keeps_nothing_alive() {
        assert_eq!(after_flush(Flushed { stopping: true, ..SENT }), AfterFlush::Linger);
        assert_eq!(after_flush(Flushed { stopping: true, input_waits: true, ..SENT }), AfterFlush::Process);
    }
}
