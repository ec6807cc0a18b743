-- What wrk sends, and one line of JSON with what came of it. Arguments: close (no keep-alive), upload (100 KiB POST).

function init(args)
    for _, what in ipairs(args) do
        if what == "close" then
            wrk.headers["Connection"] = "close"
        elseif what == "upload" then
            wrk.method = "POST"
            wrk.headers["Content-Type"] = "application/octet-stream"
            wrk.body = string.rep("x", 100 * 1024)
        end
    end
    request_text = wrk.format()
end

function request()
    return request_text
end

function done(summary, latency)
    local e = summary.errors
    io.write(string.format(
        'RESULT {"requests": %d, "seconds": %.6f, "errors": %d, "read_errors": %d, "p50": %d, "p99": %d}\n',
        summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout, e.read,
        latency:percentile(50), latency:percentile(99)))
end
