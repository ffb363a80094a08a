#include "padding.hpp"

#include <cstring>

void zoo_clear_rows(const ZooRows* p, int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
        const int64_t example = i / p->length, token = i % p->length;
        const char* from = p->x + example * p->x_batch + token * p->x_token;
        char* to = p->out + example * p->out_batch + token * p->out_token;
        for (int64_t head = 0; head < p->heads; ++head, from += p->x_head, to += p->out_head)
            if (p->padded[i])
                std::memset(to, 0, p->row);
            else
                std::memcpy(to, from, p->row);
    }
}
