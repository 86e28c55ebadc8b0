/* Element-wise parts of a Llama layer and of its loss on a CPU, each in one pass over memory, forward and backward (fp32).
   PyTorch takes 3 to 12 passes for each. All tensors are contiguous; rows are independent and shared out to OpenMP threads. */
#include <math.h>
#include <string.h>

#ifdef __x86_64__ /* glibc has it for whole vectors */
__attribute__((simd("notinbranch"))) float expf(float);
#endif

/* y = x / rms(x) * w; inverse[r] = 1 / rms(x_r) */
void rms_norm(const float *x, const float *w, float *y, float *inverse, long rows, long n, float eps) {
#pragma omp parallel for
    for (long r = 0; r < rows; r++) {
        const float *xr = x + r * n;
        float *yr = y + r * n, sum = 0;
        for (long i = 0; i < n; i++) sum += xr[i] * xr[i];
        float s = inverse[r] = 1 / sqrtf(sum / n + eps);
        for (long i = 0; i < n; i++) yr[i] = xr[i] * s * w[i];
    }
}

/* dx, and dw as one partial sum for each of `parts` runs of rows, so that the result does not depend on the number of threads */
void rms_norm_backward(const float *dy, const float *x, const float *w, const float *inverse, float *dx, float *dw, long rows, long n,
                       long parts) {
#pragma omp parallel for
    for (long p = 0; p < parts; p++) {
        float *dwp = dw + p * n;
        memset(dwp, 0, n * sizeof(float));
        for (long r = rows * p / parts; r < rows * (p + 1) / parts; r++) {
            const float *xr = x + r * n, *dyr = dy + r * n;
            float *dxr = dx + r * n, dot = 0, s = inverse[r];
            for (long i = 0; i < n; i++) dot += dyr[i] * w[i] * xr[i];
            float c = dot * s * s / n;
            for (long i = 0; i < n; i++) {
                dxr[i] = s * (dyr[i] * w[i] - xr[i] * c);
                dwp[i] += dyr[i] * xr[i] * s;
            }
        }
    }
}

/* out = silu(gate) * up */
void swiglu(const float *gate, const float *up, float *out, long rows, long n) {
#pragma omp parallel for
    for (long r = 0; r < rows; r++)
        for (long i = r * n; i < (r + 1) * n; i++) out[i] = gate[i] / (1 + expf(-gate[i])) * up[i];
}

void swiglu_backward(const float *dout, const float *gate, const float *up, float *dgate, float *dup, long rows, long n) {
#pragma omp parallel for
    for (long r = 0; r < rows; r++)
        for (long i = r * n; i < (r + 1) * n; i++) {
            float g = gate[i], sigmoid = 1 / (1 + expf(-g)), d = dout[i];
            dup[i] = d * g * sigmoid;
            dgate[i] = d * up[i] * sigmoid * (1 + g * (1 - sigmoid));
        }
}

/* Rotary positions: each head's halves (a, b) become (a cos - b sin, b cos + a sin); sign -1 turns back. out may be x. Row r of x
   takes row r % table_rows of the cosines and sines, `size` values each of which the second half repeats the first. */
void rotate(const float *x, float *out, const float *cosine, const float *sine, long rows, long heads, long size, long table_rows,
            float sign) {
#pragma omp parallel for
    for (long r = 0; r < rows; r++) {
        const float *c = cosine + r % table_rows * size, *s = sine + r % table_rows * size;
        for (long h = 0; h < heads; h++) {
            const float *a = x + (r * heads + h) * size, *b = a + size / 2;
            float *oa = out + (r * heads + h) * size, *ob = oa + size / 2;
#pragma GCC ivdep
            for (long i = 0; i < size / 2; i++) {
                float first = a[i], second = b[i], si = sign * s[i];
                oa[i] = first * c[i] - second * si;
                ob[i] = second * c[i] + first * si;
            }
        }
    }
}

/* nll = -log softmax(logits)[target]; where scale is not null the logits become scale * (softmax - one_hot(target)); where entropy
   is not null it takes log Σ exp z - Σ p z */
void cross_entropy(float *logits, const long *target, const float *scale, float *nll, float *entropy, long rows, long n) {
#pragma omp parallel for
    for (long r = 0; r < rows; r++) {
        float *z = logits + r * n, top = z[0], sum = 0, mean = 0, correct = z[target[r]];
        for (long i = 1; i < n; i++) top = z[i] > top ? z[i] : top;
        if (entropy) {
            for (long i = 0; i < n; i++) {
                float e = expf(z[i] - top);
                sum += e;
                mean += e * (z[i] - top);
            }
            entropy[r] = logf(sum) - mean / sum;
            sum = 0;
        }
        if (!scale) {
            for (long i = 0; i < n; i++) sum += expf(z[i] - top);
        } else {
            for (long i = 0; i < n; i++) sum += z[i] = expf(z[i] - top);
            float factor = scale[r] / sum;
            for (long i = 0; i < n; i++) z[i] *= factor;
            z[target[r]] -= scale[r];
        }
        nll[r] = logf(sum) + top - correct;
    }
}

/* Scores of queries first … first + queries - 1 of each head against keys 0 … keys - 1 become causal attention weights. */
void causal_softmax(float *scores, long heads, long queries, long keys, long first, float scale) {
#pragma omp parallel for
    for (long r = 0; r < heads * queries; r++) {
        float *z = scores + r * keys, top = z[0], sum = 0;
        long seen = first + r % queries + 1;
        for (long i = 1; i < seen; i++) top = z[i] > top ? z[i] : top;
        for (long i = 0; i < seen; i++) sum += z[i] = expf((z[i] - top) * scale);
        float factor = 1 / sum;
        for (long i = 0; i < seen; i++) z[i] *= factor;
        memset(z + seen, 0, (keys - seen) * sizeof(float));
    }
}

/* Gradient of the weights becomes gradient of the scores. */
void causal_softmax_backward(float *gradient, const float *weights, long rows, long keys, float scale) {
#pragma omp parallel for
    for (long r = 0; r < rows; r++) {
        float *g = gradient + r * keys, dot = 0;
        const float *p = weights + r * keys;
        for (long i = 0; i < keys; i++) dot += g[i] * p[i];
        for (long i = 0; i < keys; i++) g[i] = p[i] * (g[i] - dot) * scale;
    }
}

typedef float vec __attribute__((vector_size(32), aligned(4), may_alias));
/* out[h, i] = x[place[i], h] for tokens x of several heads, 0 where the place is -1 */
void gather(const float *x, const long *place, float *out, long n, long heads, long size) {
#pragma omp parallel for
    for (long h = 0; h < heads; h++)
        for (long i = 0; i < n; i++)
            if (place[i] < 0) memset(out + (h * n + i) * size, 0, size * sizeof(float));
            else memcpy(out + (h * n + i) * size, x + (place[i] * heads + h) * size, size * sizeof(float));
}

/* out[place[i], h] += x[h, i], or takes it with `add` 0; nothing where the place is -1 */
void scatter(const float *x, const long *place, float *out, long n, long heads, long size, long add) {
#pragma omp parallel for
    for (long h = 0; h < heads; h++)
        for (long i = 0; i < n; i++) {
            float *to = out + (place[i] * heads + h) * size;
            const float *from = x + (h * n + i) * size;
            if (place[i] < 0) continue;
            if (!add) memcpy(to, from, size * sizeof(float));
            else
#pragma GCC ivdep
                for (long c = 0; c < size; c++) to[c] += from[c];
        }
}

#define BLOCK 32 /* floats in four of them */

/* s[j] = scale * q . k_j for j < n; writes and reads up to BLOCK - 1 further places. Keys stand as [size, token]. */
static inline void scores(const float *q, const float *k, float *s, long n, long size, long stride, float scale) {
    for (long j = 0; j < n; j += BLOCK) {
        vec a = {0}, b = {0}, c = {0}, d = {0}, *out = (vec *)(s + j);
        for (long i = 0; i < size; i++) {
            const vec *kj = (const vec *)(k + i * stride + j);
            a += q[i] * kj[0], b += q[i] * kj[1], c += q[i] * kj[2], d += q[i] * kj[3];
        }
        out[0] = a * scale, out[1] = b * scale, out[2] = c * scale, out[3] = d * scale;
    }
}

/* o += sum over j of s[j] * v_j. Values stand as [token, size]. */
static inline void weigh(const float *s, const float *v, float *o, long n, long size) {
    long i = 0;
    for (; i + BLOCK <= size; i += BLOCK) {
        vec *out = (vec *)(o + i), a = out[0], b = out[1], c = out[2], d = out[3];
        for (long j = 0; j < n; j++) {
            const vec *vj = (const vec *)(v + j * size + i);
            a += s[j] * vj[0], b += s[j] * vj[1], c += s[j] * vj[2], d += s[j] * vj[3];
        }
        out[0] = a, out[1] = b, out[2] = c, out[3] = d;
    }
    for (; i < size; i++)
        for (long j = 0; j < n; j++) o[i] += s[j] * v[j * size + i];
}

/* Attention of one new token of each of n responses: its key and value are stored behind the `own` tokens of its row, then it sees
   its prompt and its own tokens. Keys stand as [head, size, token], values as [head, token, size]; of prompts for all prompts together.
   Behind the keys there must be BLOCK places. */
void decode(const float *q, const float *k, const float *v, const float *prompt_k, const float *prompt_v, float *own_k, float *own_v,
            float *out, const long *row, const long *start, const long *length, const long *own, long n, long heads, long kv_heads,
            long size, long prompt_tokens, long capacity, float scale) {
#pragma omp parallel for
    for (long r = 0; r < n; r++) {
        long place = own[r], shared = length[r], keys = shared + place + 1, repeats = heads / kv_heads;
        float s[keys + BLOCK];
        for (long h = 0; h < kv_heads; h++) {
            float *kh = own_k + (row[r] * kv_heads + h) * size * capacity, *vh = own_v + (row[r] * kv_heads + h) * size * capacity;
            const float *pk = prompt_k + h * size * prompt_tokens + start[r], *pv = prompt_v + (h * prompt_tokens + start[r]) * size;
            for (long c = 0; c < size; c++) kh[c * capacity + place] = k[(r * kv_heads + h) * size + c];
            memcpy(vh + place * size, v + (r * kv_heads + h) * size, size * sizeof(float));
            for (long i = 0; i < repeats; i++) {
                const float *qh = q + (r * heads + h * repeats + i) * size;
                float *o = out + (r * heads + h * repeats + i) * size, top, sum = 0;
                scores(qh, pk, s, shared, size, prompt_tokens, scale);
                scores(qh, kh, s + shared, place + 1, size, capacity, scale);
                top = s[0];
                for (long j = 1; j < keys; j++) top = s[j] > top ? s[j] : top;
                for (long j = 0; j < keys; j++) sum += s[j] = expf(s[j] - top);
                for (long j = 0; j < keys; j++) s[j] /= sum;
                memset(o, 0, size * sizeof(float));
                weigh(s, pv, o, shared, size);
                weigh(s + shared, vh, o, place + 1, size);
            }
        }
    }
}
