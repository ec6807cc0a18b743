/*
 * What C can do and Rust cannot: macros, variadic functions, the command table. No decision is taken here.
 */
#ifndef POOL_SHIM_H
#define POOL_SHIM_H

#include "httpd.h"
#include "http_config.h"
#include "http_log.h"
#include "util_filter.h"
#include "apr_buckets.h"
#include "apr_hooks.h"
#include "apr_thread_proc.h"

/* The directives; used by the module record, which is Rust's (a cdylib does not export a C record). */
extern const command_rec pool_shim_commands[];

/* Logging: text is printed as it is, never as a format. */
void pool_shim_log_server(int level, apr_status_t status, const server_rec *s, const char *text);
void pool_shim_log_request(int level, apr_status_t status, const request_rec *r, const char *text);
void pool_shim_log_startup(int level, apr_status_t status, const char *text);
/* As the named module would: what counts is that module's LogLevel. */
void pool_shim_log_request_as(const char *file, int line, int module_index, int level, apr_status_t status,
                              const request_rec *r, const char *text);
void pool_shim_log_server_as(int module_index, int level, const server_rec *s, const char *text);

/* Brigades and buckets. */
void pool_shim_brigade_insert_tail(apr_bucket_brigade *bb, apr_bucket *b);
void pool_shim_brigade_concat(apr_bucket_brigade *a, apr_bucket_brigade *b);
apr_bucket *pool_shim_brigade_first(apr_bucket_brigade *bb);
/* NULL at the end of the brigade. */
apr_bucket *pool_shim_bucket_next(apr_bucket_brigade *bb, apr_bucket *b);
void pool_shim_bucket_delete(apr_bucket *b);
apr_status_t pool_shim_bucket_read(apr_bucket *b, const char **data, apr_size_t *len, apr_read_type_e block);

enum {
    POOL_BUCKET_DATA = 0,
    POOL_BUCKET_EOS,
    POOL_BUCKET_EOR,
    POOL_BUCKET_EOC,
    POOL_BUCKET_FLUSH,
    POOL_BUCKET_ERROR,
    POOL_BUCKET_FILE,
    POOL_BUCKET_METADATA
};
/* One of the above. */
int pool_shim_bucket_kind(const apr_bucket *b);
/* The status of an ERROR bucket. */
int pool_shim_bucket_error_status(const apr_bucket *b);
/*
 * What there is of the request's body. An input filter that finds it bad answers the client itself, and httpd's own
 * does: here that answer is not sent, its status is written to *refused.
 */
apr_status_t pool_shim_read_body(request_rec *r, apr_bucket_brigade *bb, apr_off_t limit, int *refused);
/* The descriptor that becomes readable when more of an HTTP/2 stream's body arrives, after a look that found nothing;
   negative where httpd or mod_http2 has none. */
int pool_shim_stream_input(conn_rec *c);
/* The file of a FILE bucket. */
apr_file_t *pool_shim_bucket_file(const apr_bucket *b);

/* Modules for which vectors of configuration records have room. */
int pool_shim_total_modules(void);
/* A directive with one argument, or with raw ones, as if it stood in the server config: NULL, or what is wrong. */
const char *pool_shim_apply_directive(apr_pool_t *p, server_rec *s, const char *file, const char *name,
                                      const char *arg);

/*
 * A directory record of mod_ssl's, made by its own functions, in which "SSLOptions +StdEnvVars +ExportCertData" is in
 * force; NULL without mod_ssl.
 */
void *pool_shim_ssl_options_record(apr_pool_t *p, server_rec *s);

/* Threads that httpd knows as its own: functions, macros or nothing, by the version of APR. */
apr_status_t pool_shim_thread_create(apr_thread_t **thread, apr_threadattr_t *attr, apr_thread_start_t body,
                                     void *data, apr_pool_t *p);
/* In a process that was forked just now, and once in each child. */
void pool_shim_thread_after_fork(void);
apr_status_t pool_shim_thread_main_create(apr_pool_t *p);

#endif
