import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.IOException;
import java.util.List;
import java.util.Map;
import java.util.function.Function;

/**
 * What all programs here share: they read texts from standard input, and print vectors or an error as one JSON object.
 * The server's address, the model and the key come from the environment.
 */
class Program {
    static final String BASE_URL = System.getenv("BASE_URL");
    static final String MODEL = System.getenv("MODEL");
    static final String API_KEY = System.getenv("API_KEY");

    /** Prints what {@code embed} returns for the texts, or the message of its error, as a user sees it. */
    static void run(Function<List<String>, List<?>> embed) throws IOException {
        ObjectMapper json = new ObjectMapper();
        List<String> texts = List.of(json.readValue(System.in, String[].class));
        Map<String, Object> answer;
        try {
            answer = Map.of("vectors", embed.apply(texts));
        } catch (RuntimeException error) {
            answer = Map.of("error", String.valueOf(error.getMessage()));
        }
        System.out.println(json.writeValueAsString(answer));
    }
}
