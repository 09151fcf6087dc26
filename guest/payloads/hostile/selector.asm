; Selects a queue that does not exist.
%include "driver.inc"
    begin
    reset
    mov byte [rdi + 8], 7
    finish
