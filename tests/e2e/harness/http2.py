"""HTTP/2 by python-h2."""

from .http1 import Broken, Response


class H2:
    """HTTP/2 by python-h2, prior knowledge or TLS: several streams on one connection."""

    def __init__(self, server, tls=False, host="alice.test", timeout=20, push=False):
        import h2.config
        import h2.connection
        import h2.settings

        self.host, self.tls = host, tls
        self.conn = server.connect(tls=tls, alpn=["h2"] if tls else None, server_name=host,
                                   timeout=timeout)
        if tls and self.conn.sock.selected_alpn_protocol() != "h2":
            raise Broken("the server did not choose h2")
        config = h2.config.H2Configuration(header_encoding="utf-8", validate_inbound_headers=False)
        self.h2 = h2.connection.H2Connection(config)
        self.h2.initiate_connection()
        self.h2.update_settings({h2.settings.SettingCodes.ENABLE_PUSH: int(push)})
        self.streams = {}
        self.pushed = []  # paths that the server has promised
        self.goaway = None
        self.flush()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.conn.close()

    def flush(self):
        data = self.h2.data_to_send()
        if data:
            self.conn.sock.sendall(data)

    @staticmethod
    def new_state():
        return {"status": None, "headers": [], "body": b"", "ended": False, "reset": None, "interim": [],
                "trailers": []}

    def start(self, path, method="GET", headers=(), body=b"", host=None, trailers=()):
        stream = self.h2.get_next_available_stream_id()
        fields = [(":method", method), (":path", path), (":authority", host or self.host),
                  (":scheme", "https" if self.tls else "http"), *headers]
        self.h2.send_headers(stream, fields, end_stream=not body)
        self.streams[stream] = self.new_state()
        self.flush()
        while body and not self.streams[stream]["ended"]:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size)
            if room == 0:
                self.step()
                continue
            piece, body = body[:room], body[room:]
            self.h2.send_data(stream, piece, end_stream=not body and not trailers)
            self.flush()
        if trailers:
            self.h2.send_headers(stream, list(trailers), end_stream=True)
            self.flush()
        return stream

    def step(self):
        import h2.events as ev

        data = self.conn.sock.recv(65536)
        if not data:
            raise Broken("HTTP/2 connection ended")
        for event in self.h2.receive_data(data):
            state = self.streams.get(getattr(event, "stream_id", None))
            if isinstance(event, ev.ResponseReceived):
                state["headers"] = list(event.headers)
                state["status"] = int(dict(event.headers)[":status"])
            elif isinstance(event, ev.InformationalResponseReceived):
                state["interim"].append(list(event.headers))
            elif isinstance(event, ev.PushedStreamReceived):
                self.pushed.append(dict(event.headers)[":path"])
                self.streams[event.pushed_stream_id] = self.new_state()
            elif isinstance(event, ev.DataReceived):
                state["body"] += event.data
                self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, ev.TrailersReceived):
                state["trailers"] = list(event.headers)
            elif isinstance(event, ev.StreamEnded):
                state["ended"] = True
            elif isinstance(event, ev.StreamReset):
                if state is not None:
                    state["reset"], state["ended"] = event.error_code, True
            elif isinstance(event, ev.ConnectionTerminated):
                self.goaway = event.error_code
        self.flush()

    def wait(self, stream):
        while not self.streams[stream]["ended"]:
            self.step()
        state = self.streams[stream]
        return Response(
            state["status"] or 0, "", "HTTP/2",
            [(k, v) for k, v in state["headers"] if not k.startswith(":")],
            state["body"], interim=state["interim"], trailers=state["trailers"],
            complete=state["reset"] is None,
        )

    def get(self, path, **kw):
        return self.wait(self.start(path, **kw))
